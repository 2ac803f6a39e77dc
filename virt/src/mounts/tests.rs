//! What an image may say about mounts.

use super::*;

fn made(namespace: u32, on: On) -> Made {
    Made {
        namespace,
        point: "/m".into(),
        on,
        at: Bytes::default(),
        of: Source::Place("/".into()),
        part: Bytes::default(),
        options: Vec::new(),
        unbindable: false,
        group: Group::default(),
    }
}

/// The sandbox's namespace with one mount, another one with a root and a mount, and a hidden directory.
fn sound() -> Changes {
    let tmpfs =
        FileSystem { kind: "tmpfs".into(), source: "t".into(), options: Bytes::default(), read_only: false };
    Changes {
        file_systems: vec![tmpfs],
        deleted: vec![Deleted { of: Source::FileSystem(0), name: "a/b".into() }],
        made: vec![made(0, On::Place("/".into())), made(1, On::Nothing), made(1, On::Made(1))],
        nooks: vec![Nook { on: On::Made(2), at: "in".into() }],
        ..Changes::default()
    }
}

#[test]
fn a_sound_list_has_numbers_for_all() {
    let changes = sound();
    assert_eq!((changes.check(), changes.spaces(), changes.namespaces()), (Ok(()), 2, 3));
    let numbers = numbers(changes.namespaces());
    let handles: Vec<_> = numbers.iter().flat_map(|number| [number.handle, number.root]).collect();
    assert_eq!(handles, [4, 5, 6, 7, 8, 9]);
    assert_eq!((Changes::default().spaces(), Changes::default().namespaces()), (1, 0));
}

#[test]
fn what_leads_nowhere_is_refused() {
    type Change = fn(&mut Changes);
    let wrong: [(&str, Change); 15] = [
        ("a mount on itself", |c| c.made[2].on = On::Made(2)),
        ("a mount in another namespace", |c| c.made[2].on = On::Made(0)),
        ("a mount on one of the sandbox elsewhere", |c| c.made[2].on = On::Place("/".into())),
        ("a second root", |c| c.made[2].on = On::Nothing),
        ("a namespace without a root", |c| c.made[2].namespace = 2),
        ("a root of the sandbox's namespace", |c| c.made[0].on = On::Nothing),
        ("a namespace of a huge number", |c| c.made[2].namespace = u32::MAX),
        ("a way out", |c| c.made[2].at = "../x".into()),
        ("an absolute part", |c| c.made[2].part = "/etc".into()),
        ("no such file system", |c| c.made[2].of = Source::FileSystem(1)),
        ("a kind that is no job's", |c| c.file_systems[0].kind = "ext4".into()),
        ("an unknown option", |c| c.made[2].options = vec!["suid".into()]),
        ("a relative place", |c| c.unmounted = vec!["dev".into()]),
        ("the deleted part of something deleted", |c| c.deleted[0].of = Source::Deleted(0)),
        ("a hidden directory on nothing", |c| c.nooks[0].on = On::Nothing),
    ];
    for (what, change) in wrong {
        let mut changes = sound();
        change(&mut changes);
        assert!(changes.check().is_err(), "{what}");
    }
}
