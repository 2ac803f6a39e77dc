//! What the command line says: `--plugin ckrun-qemu:image=/srv/guest`.

use ckrun_plugin::{Address, Binding, Ckrun, Code, Fault};
use std::path::{Path, PathBuf};
use std::time::Duration;

const NAMES: [&str; 10] =
    ["image", "machine", "memory", "add", "link", "device", "socket", "patience", "qemu", "directory"];

/// The options.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The guest, for `-kernel`.
    pub image: PathBuf,
    /// The machine's type, with its version.
    pub machine: String,
    /// MiB.
    pub memory: u64,
    /// Devices beside the serial line, in their order.
    pub add: Vec<String>,
    /// The virtual name, with nothing behind it yet.
    pub link: Option<Binding>,
    /// How long guest and job may take to read what was sent to them, before a checkpoint.
    pub patience: Duration,
    /// The program, a path or a name.
    pub qemu: String,
    /// Below which each machine has a directory of its own.
    pub directory: PathBuf,
}

impl Options {
    /// Reads them.
    ///
    /// # Errors
    /// Names the option, what it is and what it could be.
    pub fn of(ckrun: &Ckrun) -> Result<Options, Fault> {
        ckrun.expect_options(&NAMES)?;
        let given = |name: &str, usual: &str| ckrun.option(name).unwrap_or(usual).to_owned();
        let path = |name: &str, usual: &str| {
            let path = given(name, usual);
            if path.starts_with('/') { Ok(path) } else { Err(wrong(name, &path, "must be an absolute path")) }
        };
        let number = |name: &str, usual: &str| {
            let text = given(name, usual);
            text.parse::<u64>().map_err(|_| wrong(name, &text, "must be a number"))
        };
        let machine = given("machine", "pc-i440fx-7.2");
        if !versioned(&machine) {
            return Err(wrong("machine", &machine, "must name its version, as pc-i440fx-7.2 does"));
        }
        let add: Vec<String> =
            given("add", "").split('+').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        if let Some(word) = add.iter().find(|word| word.starts_with('-')) {
            return Err(wrong("add", word, "must be the name of a device"));
        }
        let link = match given("link", if ckrun.option("socket").is_some() { "socket" } else { "device" })
            .as_str()
        {
            "device" if ckrun.option("socket").is_none() => Binding::device(path("device", "/dev/emu0")?, ""),
            "socket" if ckrun.option("device").is_none() => {
                let text = given("socket", "unix:/run/emu");
                // QEMU listens at a path, to which a socket of another family can't be connected.
                let address = text.parse().ok().filter(|address| !matches!(address, Address::Tcp(..)));
                let why = "must be unix:PATH or unix:@NAME";
                let address: Address = address.ok_or_else(|| wrong("socket", &text, why))?;
                Binding::socket(address, "")
            }
            other => {
                return Err(wrong("link", other, "must be device or socket, and the name of one is given"));
            }
        };
        Ok(Options {
            image: path("image", "")?.into(),
            machine,
            memory: number("memory", "32")?,
            add,
            link: Some(link),
            patience: Duration::from_secs(number("patience", "10")?),
            qemu: given("qemu", "qemu-system-x86_64"),
            directory: path("directory", "/run/ckrun-qemu")?.into(),
        })
    }

    /// The machine's command line, but for where it is spoken to.
    pub fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = ["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg"]
            .map(str::to_owned)
            .to_vec();
        words.extend(["-machine".into(), self.machine.clone(), "-m".into(), self.memory.to_string()]);
        words.extend(["-kernel".into(), self.image.display().to_string()]);
        for device in self.devices() {
            words.extend(["-device".into(), device]);
        }
        words
    }

    /// All devices that the machine's type does not have by itself.
    pub fn devices(&self) -> Vec<String> {
        let mut devices = vec!["isa-serial,chardev=link".to_owned()];
        devices.extend(self.add.iter().cloned());
        devices
    }

    /// A digest of the guest.
    ///
    /// # Errors
    /// [`Code::Unavailable`].
    pub fn digest(&self) -> Result<String, Fault> {
        digest(&self.image)
    }
}

fn digest(image: &Path) -> Result<String, Fault> {
    let bytes = std::fs::read(image)
        .map_err(|e| Fault::unavailable(format!("the guest {}: {e}", image.display())))?;
    Ok(format!("xxh3:{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes)))
}

/// "pc-q35-7.2" and not "q35", which is another machine in each version.
fn versioned(machine: &str) -> bool {
    let version = machine.rsplit_once('-').and_then(|(_, version)| version.split_once('.'));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    version.is_some_and(|(major, minor)| digits(major) && digits(minor))
}

fn wrong(name: &str, value: &str, why: &str) -> Fault {
    Fault::new(Code::InvalidParams, format!("option {name}={value}: {why}"))
}
