//! Cgroups that the container itself has made below its own, as places for a further process (`ckrun exec --cgroup`).

use super::{Cgroups, io};
use crate::error::{Error, Result};
use std::path::{Component, Path};

impl Cgroups {
    /// The container's cgroups with some replaced by ones below them. `PATH` means cgroup2, or without that every
    /// hierarchy; `CONTROLLER[,CONTROLLER]:PATH` the v1 hierarchy of these controllers.
    ///
    /// # Errors
    /// There is no such controller or cgroup, or the path leads out of the container's.
    pub fn within(&self, wanted: &[String]) -> Result<Cgroups> {
        let mut all = self.clone();
        for word in wanted {
            let refuse = |why: String| Error::Usage(format!("--cgroup {word}: {why}"));
            let (controllers, path) =
                word.split_once(':').map_or((None, word.as_str()), |(c, p)| (Some(c), p));
            let below = Path::new(path.trim_start_matches('/'));
            if below.components().any(|c| c == Component::ParentDir) {
                return Err(refuse("leads out of the container's cgroup".into()));
            }
            let has_v2 = self.v2().is_some();
            let mut found = false;
            for dir in &mut all.dirs {
                let meant = match controllers {
                    Some(names) => names.split(',').all(|name| dir.hierarchy.has(name)),
                    None => dir.is_v2() || !has_v2,
                };
                if !meant {
                    continue;
                }
                found = true;
                let place = dir.path.join(below);
                if !io::exists(&place) {
                    return Err(refuse(format!("there is no cgroup {}", place.display())));
                }
                dir.path = place;
            }
            if !found {
                return Err(refuse("the container is in no such hierarchy".into()));
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Request;
    use super::*;

    fn made(id: &str) -> Cgroups {
        let request = Request { id, path: None, systemd: false, rootless: false, annotations: None };
        let mut cgroups = Cgroups::plan(&request).unwrap();
        cgroups.create().unwrap();
        cgroups
    }

    fn paths(cgroups: &Cgroups) -> Vec<String> {
        cgroups.directories().map(|(_, path)| path.display().to_string()).collect()
    }

    #[test]
    fn only_what_the_container_has_made_is_found() {
        let own = made(&format!("within-{}", std::process::id()));
        let (_, first) = own.directories().next().unwrap();
        std::fs::create_dir(first.join("part")).unwrap();
        let inside = own.within(&["/part".to_owned()]).unwrap();
        assert!(paths(&inside)[0].ends_with("/part"));
        for bad in ["..", "part/../..", "absent", "nocontroller:/"] {
            assert!(own.within(&[bad.to_owned()]).is_err(), "{bad}");
        }
        assert_eq!(paths(&own.within(&["/".to_owned()]).unwrap()).len(), paths(&own).len());
        own.remove().unwrap();
    }
}
