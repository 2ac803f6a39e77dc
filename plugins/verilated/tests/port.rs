//! The test access port: what a JTAG adapter shifts in and out, and that a state has it too.

use ckrun_softemu::design::Parameters;
use ckrun_softemu::hardware::Hardware;
use ckrun_verilated::Model;

const SMALL: Parameters = Parameters { ram: 1024, fifo: 16, boot: 0 };
const IDENTIFY: u64 = 1;
const COUNT: u64 = 2;
const ACCESS: u64 = 3;
const BYPASS: u64 = 15;

/// An adapter. If it is told to, it saves and loads the model before each change of a pin.
struct Adapter {
    model: Model,
    moves: bool,
}

impl Adapter {
    fn new(moves: bool) -> Adapter {
        let mut adapter = Adapter { model: Model::power_on(SMALL).unwrap(), moves };
        // Test-Logic-Reset from anywhere, then Run-Test/Idle.
        adapter.modes(&[1, 1, 1, 1, 1, 0]);
        adapter
    }

    fn pins(&mut self, tck: bool, tms: bool, tdi: bool) {
        if self.moves {
            self.model = Model::resume(SMALL, &self.model.state()).unwrap();
        }
        self.model.set_port(tck, tms, tdi);
    }

    fn bit(&mut self, tms: bool, tdi: bool) -> bool {
        self.pins(false, tms, tdi);
        let out = self.model.tdo();
        self.pins(true, tms, tdi);
        out
    }

    fn modes(&mut self, modes: &[u8]) {
        for mode in modes {
            self.bit(*mode == 1, false);
        }
    }

    /// From Shift to Run-Test/Idle.
    fn shift(&mut self, bits: u32, value: u64) -> u64 {
        let mut out = 0;
        for n in 0..bits {
            out |= u64::from(self.bit(n == bits - 1, value >> n & 1 == 1)) << n;
        }
        self.modes(&[1, 0]);
        out
    }

    fn instruction(&mut self, instruction: u64) -> u64 {
        self.modes(&[1, 1, 0, 0]);
        self.shift(4, instruction)
    }

    fn data(&mut self, bits: u32, value: u64) -> u64 {
        self.modes(&[1, 0, 0]);
        self.shift(bits, value)
    }
}

#[test]
fn after_a_reset_it_says_who_it_is() {
    let mut adapter = Adapter::new(false);
    assert_eq!(adapter.data(32, 0), 0x1c0d_e0ff);
    // What is shifted in comes out behind it.
    assert_eq!(adapter.data(40, 0xa5), 0xa5_1c0d_e0ff);
    // The end of the instruction register is always 01.
    assert_eq!(adapter.instruction(BYPASS), 1);
    assert_eq!(adapter.data(5, 0b10110), 0b01100);
    adapter.model.reset_port(true);
    adapter.model.reset_port(false);
    adapter.modes(&[0]);
    assert_eq!(adapter.data(32, 0), 0x1c0d_e0ff);
}

#[test]
fn a_clock_in_run_test_is_a_cycle_and_no_other_is() {
    let mut adapter = Adapter::new(false);
    adapter.instruction(COUNT);
    let before = adapter.data(64, 0);
    assert_eq!(before, adapter.model.cycle());
    adapter.modes(&[0; 10]);
    // And one on the way out of Run-Test/Idle.
    assert_eq!(adapter.data(64, 0), before + 11);
    // A testbench beside it sees the same design.
    adapter.model.step(100);
    assert_eq!(adapter.data(64, 0), before + 112);
}

#[test]
fn registers_are_written_and_read() {
    let mut adapter = Adapter::new(false);
    adapter.instruction(ACCESS);
    let write = |number: u64, value: u64| 1 << 39 | number << 32 | value;
    adapter.data(40, write(16, 0xdead_beef));
    assert_eq!(adapter.model.read_register(16), Some(0xdead_beef));
    // Number and value of the register that was named last.
    assert_eq!(adapter.data(40, 0), 16 << 32 | 0xdead_beef);
    assert_eq!(adapter.data(40, 77 << 32), 0x5446_4f53);
    assert_eq!(adapter.data(40, 0), 77 << 32, "there is no such register");
    adapter.model.write_register(17, 5);
    adapter.data(40, 17 << 32);
    assert_eq!(adapter.data(40, 0), 17 << 32 | 5);
    assert_eq!(adapter.model.read_register(17), Some(5));
}

#[test]
fn a_state_has_the_port_in_whatever_it_is_doing() {
    let run = |moves| {
        let mut adapter = Adapter::new(moves);
        let mut said = Vec::new();
        for n in 0..20 {
            adapter.instruction([ACCESS, COUNT, IDENTIFY, BYPASS][n % 4]);
            said.push(adapter.data(64, 0x8600_0000_0000 | 0x9e37_79b9 * n as u64));
            adapter.modes(&[0; 3]);
        }
        (said, adapter.model.digest())
    };
    assert_eq!(run(true), run(false));
}
