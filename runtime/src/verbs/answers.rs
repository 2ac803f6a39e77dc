//! What a job connects to and is elsewhere: for the supervisor, which answers for it.

use crate::error::{Error, Result};
use crate::intercept::Route;
use crate::intercept::hosts::Hosts;
use crate::intercept::names::Name;
use ckrun_plugin::binding::Address;
use ckrun_virt::image::Bytes;
use ckrun_virt::restore::Peer;
use std::collections::BTreeMap;

/// The routes to `sockets`, by the job's names. A host that the job knows by its name gets an address in `hosts`.
///
/// # Errors
/// A name that is no address.
pub fn routes(sockets: &BTreeMap<Bytes, Peer>, hosts: &mut Hosts) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    for (name, peer) in sockets {
        let no = |why: String| Error::Usage(format!("socket {name}: {why}"));
        // Of a socket that a plugin has connected nobody may know where it leads.
        let Some(real) = Name::bare(&peer.name()) else { continue };
        let name = name.to_string();
        let word = if name.starts_with(['/', '@']) { "unix" } else { "tcp" };
        let address: Address = format!("{word}:{name}").parse().map_err(no)?;
        let to = Name::of(&address, |host| Ok(hosts.find_or_add(host))).map_err(no)?;
        routes.push(Route { name, to, real });
    }
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_socket_with_an_address_has_a_route() {
        let tcp = |text: &str| Peer::Tcp(text.parse().unwrap());
        let sockets = BTreeMap::from([
            (Bytes::from("emu:4000"), tcp("10.77.0.2:5011")),
            (Bytes::from("10.0.0.7:1"), tcp("[fd00::7]:2")),
            (Bytes::from("/run/emu.sock"), Peer::Unix("/run/other.sock".into())),
            (Bytes::from("@emu"), Peer::Unix("@other".into())),
        ]);
        let routes = routes(&sockets, &mut Hosts::default()).unwrap();
        let shown: Vec<_> = routes.iter().map(|r| format!("{} {} {}", r.name, r.to, r.real)).collect();
        assert!(shown[3].starts_with("emu:4000 tcp:198.1"), "{shown:?}");
        assert_eq!(shown[0], "/run/emu.sock unix:/run/emu.sock unix:/run/other.sock");
        assert_eq!(shown[1], "10.0.0.7:1 tcp:10.0.0.7:1 tcp:[fd00::7]:2");
        assert_eq!(shown[2], "@emu unix:@emu unix:@other");
        let bad = BTreeMap::from([(Bytes::from("emu"), tcp("10.77.0.2:5011"))]);
        assert!(super::routes(&bad, &mut Hosts::default()).is_err());
    }
}
