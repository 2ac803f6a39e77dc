//! Host and domain name (uts_namespaces(7)), which a job may have changed since it was started.

use crate::image::Bytes;
use crate::namespace::{Kind, Namespace};
use crate::sys::check;
use crate::{Doing, Failure};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// The names of a job that has a UTS namespace of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Names {
    /// sethostname(2).
    pub host: Bytes,
    /// setdomainname(2).
    pub domain: Bytes,
}

impl Names {
    /// The file of an image that they are in.
    pub const FILE: &str = "uts.json";

    /// Those of the job whose first process is `init`; None if it has the host's.
    ///
    /// # Errors
    /// The kernel's.
    pub fn capture(init: Pid) -> Result<Option<Names>, Failure> {
        let Some(namespace) = Namespace::of(init, Kind::Uts)? else { return Ok(None) };
        let _abroad = namespace.enter()?;
        here().map(Some)
    }

    /// Gives them to the namespace of the new first process. The host's own names are never touched.
    ///
    /// # Errors
    /// The kernel's.
    pub fn restore(&self, init: Pid) -> Result<(), Failure> {
        let Some(namespace) = Namespace::of(init, Kind::Uts)? else {
            log::warn!(
                "the container has the host's UTS namespace: the job's host name {} is lost",
                self.host
            );
            return Ok(());
        };
        let _abroad = namespace.enter()?;
        let now = here()?;
        if self.host != now.host {
            // SAFETY: the kernel reads the given number of bytes.
            let set = unsafe { libc::sethostname(self.host.as_ptr().cast(), self.host.len()) };
            check(set.into()).doing(|| format!("set the host name {}", self.host))?;
        }
        if self.domain != now.domain {
            // SAFETY: as above.
            let set = unsafe { libc::setdomainname(self.domain.as_ptr().cast(), self.domain.len()) };
            check(set.into()).doing(|| format!("set the domain name {}", self.domain))?;
        }
        Ok(())
    }
}

/// The names in this thread's namespace.
fn here() -> Result<Names, Failure> {
    let uname = rustix::system::uname();
    Ok(Names { host: uname.nodename().to_bytes().into(), domain: uname.domainname().to_bytes().into() })
}
