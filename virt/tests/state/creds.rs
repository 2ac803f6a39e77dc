use crate::job::{Newborn, at, call, capture, carried, job, through_json};
use ckrun_virt::creds::{Creds, Dumpable};
use ckrun_virt::program::Program;
use ckrun_virt::resource::Resource;
use libc::*;

const CAP_CHOWN: u64 = 0;
const CAP_KILL: u64 = 5;
const CAP_SETPCAP: u64 = 8;
const CAP_NET_RAW: u64 = 13;

/// Sets effective, permitted, inheritable capabilities.
fn capset(sets: [u64; 3]) {
    let header = [0x2008_0522_u32, 0];
    let low = sets.map(|set| set as u32);
    let high = sets.map(|set| (set >> 32) as u32);
    let data = [low, high];
    call(SYS_capset, &[at(&header), at(&data)]);
}

fn groups(list: &[u32]) {
    call(SYS_setgroups, &[list.len() as u64, list.as_ptr().expose_provenance() as u64]);
}

#[test]
fn root_stays_root() {
    let creds: Creds = carried(|| {});
    assert_eq!((creds.uids.real, creds.gids.fs, creds.no_new_privs), (0, 0, false));
    assert_eq!(creds.parent_death_signal, 0);
}

#[test]
fn a_user_with_some_capabilities_stays_so() {
    let creds: Creds = carried(|| {
        groups(&[7, 4242]);
        call(SYS_prctl, &[PR_CAPBSET_DROP as u64, CAP_NET_RAW]);
        call(SYS_prctl, &[PR_SET_SECUREBITS as u64, 1 << 2]);
        call(SYS_setresgid, &[10, 20, 30]);
        call(SYS_setfsgid, &[30]);
        call(SYS_setresuid, &[1000, 2000, 3000]);
        call(SYS_setfsuid, &[1000]);
        let kept = 1 << CAP_CHOWN | 1 << CAP_KILL | 1 << CAP_SETPCAP;
        capset([kept, kept, 1 << CAP_KILL | 1 << CAP_SETPCAP]);
        call(SYS_prctl, &[PR_CAP_AMBIENT as u64, PR_CAP_AMBIENT_RAISE as u64, CAP_KILL]);
        // Root is nothing special, locked; ambient capabilities can't be raised any more.
        call(SYS_prctl, &[PR_SET_SECUREBITS as u64, 0b100_0011]);
        capset([1 << CAP_KILL, 1 << CAP_KILL | 1 << CAP_CHOWN, 1 << CAP_KILL | 1 << CAP_SETPCAP]);
        call(SYS_prctl, &[PR_SET_NO_NEW_PRIVS as u64, 1]);
        call(SYS_prctl, &[PR_SET_PDEATHSIG as u64, SIGUSR1 as u64]);
    });
    let (uids, gids, sets) = (creds.uids, creds.gids, creds.capabilities);
    assert_eq!([uids.real, uids.effective, uids.saved, uids.fs], [1000, 2000, 3000, 1000]);
    assert_eq!([gids.real, gids.effective, gids.saved, gids.fs], [10, 20, 30, 30]);
    assert_eq!(creds.groups, [7, 4242]);
    assert_eq!((sets.effective.0, sets.ambient.0), (1 << CAP_KILL, 1 << CAP_KILL));
    assert_eq!(sets.permitted.0, 1 << CAP_KILL | 1 << CAP_CHOWN);
    assert_eq!(sets.inheritable.0, 1 << CAP_KILL | 1 << CAP_SETPCAP);
    assert!(!sets.bounding.has(CAP_NET_RAW as u32) && sets.bounding.has(CAP_CHOWN as u32));
    assert_eq!((creds.securebits.0, creds.no_new_privs), (0b100_0011, true));
    assert_eq!(creds.parent_death_signal, SIGUSR1);
}

/// The kernel lets a capability be inheritable that is not in the bounding set, but not become so.
#[test]
fn an_inheritable_capability_outside_the_bounding_set() {
    let creds: Creds = carried(|| {
        capset([1 << CAP_SETPCAP, 1 << CAP_SETPCAP | 1 << CAP_CHOWN, 1 << CAP_CHOWN]);
        call(SYS_prctl, &[PR_CAPBSET_DROP as u64, CAP_CHOWN]);
    });
    assert!(creds.capabilities.inheritable.has(0) && !creds.capabilities.bounding.has(0));
}

#[test]
fn keepcaps_is_one_of_the_securebits() {
    let creds: Creds = carried(|| {
        call(SYS_prctl, &[PR_SET_KEEPCAPS as u64, 1]);
    });
    assert_eq!(creds.securebits.0, 1 << 4);
}

#[test]
fn no_groups_and_very_many() {
    let none: Creds = carried(|| groups(&[]));
    assert!(none.groups.is_empty());
    let many: Vec<u32> = (1..1000).collect();
    let creds: Creds = carried(|| groups(&many));
    assert_eq!(creds.groups, many);
}

/// In a user namespace the job's ids are other numbers than ckrun's.
#[test]
fn ids_are_those_of_the_user_namespace() {
    let (go, gone) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
    let (mut go, mut tell) = go;
    let (mut mapped, mut map) = gone;
    let many: Vec<u32> = (1..100).collect();
    // The test's own thread must write the maps while the job waits for them.
    let parent = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let mut pid = [0; 4];
        go.read_exact(&mut pid).unwrap();
        let pid = u32::from_ne_bytes(pid);
        for name in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{pid}/{name}"), "0 100000 1000\n5000 200000 10\n").unwrap();
        }
        map.write_all(b"x").unwrap();
    });
    let job = job(|| {
        use std::io::{Read, Write};
        // The id that procfs shows to the test, whatever pid namespace this is.
        let link = std::fs::read_link("/proc/self").unwrap();
        let pid: u32 = link.to_str().unwrap().parse().unwrap();
        call(SYS_unshare, &[CLONE_NEWUSER as u64]);
        tell.write_all(&pid.to_ne_bytes()).unwrap();
        mapped.read_exact(&mut [0]).unwrap();
        groups(&many);
        call(SYS_setresgid, &[5, 6, 7]);
        call(SYS_setresuid, &[5001, 5002, 5003]);
        call(SYS_prctl, &[PR_SET_DUMPABLE as u64, 1]);
    });
    parent.join().unwrap();
    let creds: Creds = capture(&job);
    let (uids, gids) = (creds.uids, creds.gids);
    assert_eq!([uids.real, uids.effective, uids.saved, uids.fs], [5001, 5002, 5003, 5002]);
    assert_eq!([gids.real, gids.effective, gids.saved, gids.fs], [5, 6, 7, 6]);
    assert_eq!(creds.groups, many);
    through_json(&creds);
}

#[test]
fn what_root_lacks_here_is_named() {
    let creds: Creds = capture(&job(|| {}));
    let all = creds.capabilities.bounding.0;
    assert!(creds.missing(all).is_empty() && creds.missing(u64::MAX).is_empty());
    let missing = creds.missing(all & !(1 << CAP_NET_RAW) & !(1 << CAP_CHOWN));
    assert_eq!(missing, ["CAP_CHOWN", "CAP_NET_RAW"]);
}

#[test]
fn dumpable_comes_after_credentials() {
    for dumpable in [0, 1] {
        let job = job(|| {
            call(SYS_setresuid, &[1000, 1000, 1000]);
            call(SYS_prctl, &[PR_SET_DUMPABLE as u64, dumpable]);
        });
        let (creds, state): (Creds, Dumpable) = (capture(&job), capture(&job));
        assert_eq!(state, if dumpable == 1 { Dumpable::Yes } else { Dumpable::No });
        let mut newborn = Newborn::new();
        newborn.restore(&creds);
        newborn.restore(&through_json(&state));
        assert_eq!(newborn.capture::<Dumpable>(), state);
        assert_eq!(newborn.capture::<Creds>(), creds);
    }
}

#[test]
fn a_hostile_image_is_refused() {
    let creds: Creds = capture(&job(|| {}));
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = serde_json::to_value(&creds).unwrap();
        change(&mut json);
        serde_json::from_value::<Creds>(json)
    };
    for ids in ["uids", "gids"] {
        let no_id = changed(&|json| json[ids]["saved"] = u32::MAX.into()).unwrap();
        assert_eq!(no_id.check().unwrap_err(), "4294967295 is not an id");
    }
    assert!(changed(&|json| json["surprise"] = 1.into()).is_err());
    assert!(changed(&|json| json["groups"] = "all".into()).is_err());
    let strange = changed(&|json| json["capabilities"]["ambient"] = "0x8000000000000000".into()).unwrap();
    let mut program = Program::new();
    strange.restore(&mut program);
    let error = Newborn::new().worker.run(&program).unwrap_err().to_string();
    assert_eq!(error, "raise capability 63 to an ambient capability: invalid argument");
}
