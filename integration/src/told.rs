//! Plugins that write down what they hear: guests/plugin_told.py.

use crate::bundle::Container;
use crate::job::{Job, path};
use crate::run::{install, needs};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// The manifests of plugins `a` and `b` on a host of the test's own, and what both have heard.
#[derive(Debug)]
pub struct Told {
    dir: PathBuf,
    program: PathBuf,
}

impl Told {
    /// In the container's directory, by whose name their processes are found.
    pub fn of(container: &Container) -> Told {
        needs("python3", "python3");
        let dir = container.file("plugins.d");
        fs::create_dir_all(&dir).expect("make a directory");
        let program = container.file("told.py");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/plugin_told.py");
        install(&source, &program);
        let told = Told { dir, program };
        told.manifest("a", &json!({}));
        told.manifest("b", &json!({}));
        told
    }

    /// Writes the manifest of a plugin with more members.
    pub fn manifest(&self, name: &str, more: &Value) {
        let mut manifest = json!({"command": [self.program], "options": {"log": self.log()}});
        let members = more.as_object().expect("an object").clone();
        manifest.as_object_mut().expect("an object").extend(members);
        fs::write(self.dir.join(format!("{name}.json")), manifest.to_string()).expect("write a manifest");
    }

    /// The words that let ckrun find them.
    pub fn dir(&self) -> [&str; 2] {
        ["--plugin-dir", path(&self.dir)]
    }

    /// The program.
    pub fn program(&self) -> &str {
        path(&self.program)
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// What was heard since the last time.
    pub fn heard(&self) -> Vec<String> {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let _ = fs::remove_file(self.log());
        text.lines().map(str::to_owned).collect()
    }

    /// Fails unless exactly this was heard since the last time.
    pub fn hears(&self, expected: &[&str]) {
        assert_eq!(self.heard(), expected);
    }

    /// `ckrun run --detach` with these plugins, after which the job is well.
    pub fn start(&self, job: &Job, plugins: &[&str]) {
        job.start_with(&self.words(plugins));
    }

    /// `ckrun restore --detach` with these plugins besides, after which the job is well.
    pub fn restore(&self, job: &Job, image: &Path, plugins: &[&str]) {
        job.restore_with(image, &self.words(plugins));
    }

    /// Those of the command line.
    pub fn words<'a>(&'a self, plugins: &[&'a str]) -> Vec<&'a str> {
        let mut words = self.dir().to_vec();
        words.extend(plugins.iter().flat_map(|plugin| ["--plugin", plugin]));
        words
    }

    /// `ckrun plugin list --json`.
    pub fn list(&self, container: &Container) -> Value {
        list(container)
    }
}

/// `ckrun plugin list --json`.
pub fn list(container: &Container) -> Value {
    let said = container.ckrun(&["plugin", "list", "--json", "ID"]).ok();
    serde_json::from_str(&said).expect("JSON")
}
