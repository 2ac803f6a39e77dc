//! What a JTAG adapter says: OpenOCD's remote_bitbang, a byte a command.

use crate::hardware::Hardware;

/// Carries out a command. Its answer, if it has one; an error is a sentence.
pub fn serve(design: &mut impl Hardware, command: u8) -> Result<Option<u8>, String> {
    match command {
        b'0'..=b'7' => {
            let pin = |bit: u8| (command - b'0') & bit != 0;
            design.set_port(pin(4), pin(2), pin(1));
        }
        b'R' => return Ok(Some(if design.tdo() { b'1' } else { b'0' })),
        // TRST and SRST, of which only the first is connected.
        b'r' | b's' => design.reset_port(false),
        b't' | b'u' => design.reset_port(true),
        // A light, and a farewell before the end of the connection.
        b'B' | b'b' | b'Q' => {}
        other => return Err(format!("{:?} is no command of remote_bitbang for JTAG", char::from(other))),
    }
    Ok(None)
}
