//! The properties of the table, on tables that any life may lead to.

use super::bindings::KEPT;
use super::*;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

fn time(second: u32) -> Time {
    (SystemTime::UNIX_EPOCH + Duration::from_secs(second.into())).into()
}

fn generation(number: u32, second: u32) -> Generation {
    // Every other restart is on the same host, and one in four after a reboot.
    let (host, boot) = (format!("emu-{}", number / 2), format!("boot-{}", number / 4));
    Generation { number, host, boot, since: time(second), until: None }
}

/// Something that happens to a job.
#[derive(Debug, Clone)]
enum Event {
    /// It is seen with these processes, each with this many further threads and these descriptors.
    Observe(BTreeMap<u8, (u8, BTreeMap<u8, u8>)>),
    /// It is started again, with the same processes.
    Restart,
    Bind(Id, Id),
    Unbind(Id),
}

fn id() -> impl Strategy<Value = Id> {
    prop_oneof![
        "[a-c]".prop_map(|name| Id::Device(format!("/dev/{name}").as_str().into())),
        "[a-c]\\PC?".prop_map(|name| Id::Socket(name.as_str().into())),
        vec(200_u8.., 1..3).prop_map(|bytes| Id::Device(Bytes::from(bytes))),
        ("[xy]", 0..4_u64).prop_map(|(space, number)| Id::Handle { space, number }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let descriptors = btree_map(0..4_u8, 0..4_u8, 0..3);
    prop_oneof![
        3 => btree_map(1..9_u8, (0..3_u8, descriptors), 0..5).prop_map(Event::Observe),
        1 => Just(Event::Restart),
        4 => (id(), id()).prop_map(|(id, real)| Event::Bind(id, real)),
        1 => id().prop_map(Event::Unbind),
    ]
}

/// A kernel that hands out ids, from few of them so that they come back often.
struct Kernel {
    clock: u32,
    tasks: HashMap<i32, HostTask>,
}

impl Kernel {
    fn host(&mut self, thread: i32) -> HostTask {
        let clock = u64::from(self.clock);
        let free = (1..).find(|id| !self.tasks.values().any(|task| task.id == *id)).unwrap();
        *self.tasks.entry(thread).or_insert(HostTask { id: free, started: clock })
    }

    fn seen(&mut self, processes: &BTreeMap<u8, (u8, BTreeMap<u8, u8>)>) -> Seen {
        let thread = |process: u8, n: u8| i32::from(process) + 100 * i32::from(n);
        let ids: HashSet<i32> =
            processes.iter().flat_map(|(p, (threads, _))| (0..=*threads).map(|n| thread(*p, n))).collect();
        self.tasks.retain(|id, _| ids.contains(id));
        let mut seen = Seen::default();
        for (process, (threads, descriptors)) in processes {
            let leader = i32::from(*process);
            let first = processes.keys().next().map_or(0, |first| i32::from(*first));
            let session = Pair { id: first, host: self.host(first).id };
            let group = Pair { id: leader, host: self.host(leader).id };
            for n in 0..=*threads {
                let (thread, process) = (thread(*process, n), leader);
                seen.tasks.push(SeenTask { process, thread, host: self.host(thread), session, group });
            }
            for (fd, description) in descriptors {
                let description = u32::from(*description);
                let what = || format!("file {description}").as_str().into();
                seen.add_descriptor(leader, i32::from(*fd), description, what);
            }
        }
        seen
    }
}

/// What becomes of a job's table.
fn live(events: &[Event]) -> Table {
    let mut kernel = Kernel { clock: 1, tasks: HashMap::new() };
    let mut table = Table::new(generation(0, 1));
    let mut last = BTreeMap::new();
    for event in events {
        kernel.clock += 1;
        let now = time(kernel.clock);
        match event {
            Event::Observe(processes) => {
                last = processes.clone();
                table.observe(&kernel.seen(processes), now).unwrap();
            }
            Event::Restart => {
                kernel.tasks.clear();
                table.rebind(generation(table.generation() + 1, kernel.clock)).unwrap();
                table.observe(&kernel.seen(&last), now).unwrap();
            }
            Event::Bind(id, real) => {
                let before = table.clone();
                if let Err(refused) = table.bind(id, real, now) {
                    assert!(matches!(refused, Error::Taken { .. } | Error::Kind { .. }), "{refused}");
                    // A name space may have come to be.
                    assert_eq!(table.rows(), before.rows());
                }
            }
            Event::Unbind(id) => drop(table.unbind(id, now)),
        }
    }
    table
}

/// Gives up what nobody has bound since the last restart.
fn settle(mut table: Table) -> Table {
    for id in table.awaited() {
        assert!(table.unbind(&id, time(u32::MAX)), "{id}");
    }
    table
}

proptest! {
    #[test]
    fn a_table_written_and_read_is_the_same(events in vec(event(), 0..30)) {
        let table = settle(live(&events));
        let dir = tempfile::tempdir().unwrap();
        table.write(dir.path()).unwrap();
        prop_assert_eq!(Table::read(dir.path()).unwrap(), Some(table));
    }

    #[test]
    fn real_and_virtual_are_one_to_one(events in vec(event(), 0..30)) {
        let table = live(&events);
        for row in table.rows() {
            prop_assert_eq!(table.to_real(&row.id), Some(row.clone()));
            prop_assert_eq!(table.to_virtual(&row.real), Some(row));
        }
    }

    #[test]
    fn two_generations_share_no_real_task(events in vec(event(), 0..60)) {
        let table = live(&events);
        let mut lived: HashMap<_, u32> = HashMap::new();
        for row in table.rows().into_iter().chain(table.former()) {
            prop_assert_eq!(row.until.is_none(), row.generation == table.generation() && table.rows().contains(&row));
            // A descriptor is as old as its process, which is a row itself.
            if let (Some(started), None) = (row.started, row.description) {
                let kind = std::mem::discriminant(&match row.real { Id::Process(id) => Id::Thread(id), ref id => id.clone() });
                let real = (kind, row.place.unwrap().boot.clone(), row.real.clone(), started);
                prop_assert_eq!(*lived.entry(real).or_insert(row.generation), row.generation);
            }
        }
    }

    #[test]
    fn what_is_bound_goes_into_the_history(events in vec(event(), 0..30)) {
        let mut table = live(&events);
        let before: BTreeSet<String> = table.rows().iter()
            .filter(|row| row.description.is_none()).map(|row| format!("{:?}", (&row.id, &row.real, row.since))).collect();
        let (number, observed) = (table.generation(), table.observed());
        table.rebind(generation(number + 1, u32::MAX)).unwrap();
        prop_assert!(table.rows().is_empty());
        let former = table.former();
        let after: BTreeSet<String> = former.iter().filter(|row| row.generation == number && row.until == Some(observed))
            .map(|row| format!("{:?}", (&row.id, &row.real, row.since))).collect();
        prop_assert!(before.is_subset(&after), "{:?} is not all in {:?}", before, after);
    }

    #[test]
    fn no_text_makes_the_reader_panic(events in vec(event(), 0..10), cuts in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut text = serde_json::to_vec(&settle(live(&events))).unwrap();
        for (place, byte) in cuts {
            let place = place.index(text.len());
            text[place] = byte;
        }
        // What is still accepted is a table that keeps its promises.
        if let Ok(table) = serde_json::from_slice::<Table>(&text) {
            for row in table.rows() {
                prop_assert_eq!(table.to_virtual(&row.real), Some(row));
            }
        }
    }

    #[test]
    fn an_old_task_is_not_taken_for_a_new_one(ids in btree_set(1..50_i32, 1..5)) {
        let mut table = Table::new(generation(0, 1));
        let pair = |id| Pair { id, host: 1000 + id };
        let tasks = ids.iter().map(|id| SeenTask {
            process: *id, thread: *id, host: HostTask { id: 1000 + id, started: 5 }, session: pair(*id), group: pair(*id),
        });
        let seen = Seen { tasks: tasks.collect(), ..Seen::default() };
        table.observe(&seen, time(2)).unwrap();
        table.rebind(generation(1, 3)).unwrap();
        let before = table.clone();
        let refused = table.observe(&seen, time(4)).unwrap_err();
        prop_assert!(matches!(refused, Error::Old { generation: 0, .. }), "{}", refused);
        prop_assert_eq!(table, before);
    }
}

#[test]
fn one_can_read_which_emulator_held_the_job_when() {
    let mut table = Table::new(generation(0, 1));
    let device = |path: &str| Id::Device(path.into());
    let emu = device("/dev/emu0");
    for number in 0..4 {
        if number > 0 {
            table.rebind(generation(number, number * 10)).unwrap();
            assert_eq!(table.awaited(), std::slice::from_ref(&emu));
            serde_json::to_string(&table).unwrap_err();
        }
        table.bind(&emu, &device(&format!("/dev/pts/{number}")), time(number * 10 + 1)).unwrap();
        table.observe(&Seen::default(), time(number * 10 + 5)).unwrap();
    }
    let held: Vec<_> = table
        .former()
        .into_iter()
        .map(|row| (row.real.to_string(), row.place.unwrap().host.clone(), row.since, row.until.unwrap()))
        .collect();
    let told =
        |n: u32| (format!("dev:/dev/pts/{n}"), format!("emu-{}", n / 2), time(n * 10 + 1), time(n * 10 + 5));
    assert_eq!(held, [told(0), told(1), told(2)]);
    assert_eq!(table.to_real(&emu).unwrap().real, device("/dev/pts/3"));
    assert_eq!(
        table.bind(&device("/dev/emu1"), &device("/dev/pts/3"), time(99)).unwrap_err().to_string(),
        "dev:/dev/emu1 can't stand for the host's dev:/dev/pts/3: dev:/dev/emu0 does"
    );
}

#[test]
fn history_is_bounded_and_says_so() {
    let mut table = Table::new(generation(0, 1));
    let emu = Id::Device("/dev/emu0".into());
    for n in 0..KEPT + 11 {
        table.bind(&emu, &Id::Device(format!("/dev/pts/{n}").as_str().into()), time(2)).unwrap();
    }
    assert_eq!((table.former().len(), table.forgotten()), (KEPT, 10));
    assert_eq!(table.former()[0].real.to_string(), "dev:/dev/pts/10");
    for number in 1..KEPT_GENERATIONS as u32 + 5 {
        table.rebind(generation(number, 3)).unwrap();
    }
    assert_eq!((table.generations().len(), table.forgotten_generations()), (KEPT_GENERATIONS, 5));
    assert!(table.rebind(generation(7, 3)).is_err());
}

#[test]
fn a_session_outlives_its_leader() {
    let mut table = Table::new(generation(0, 1));
    let task = |id: i32, started| SeenTask {
        process: id,
        thread: id,
        host: HostTask { id: 1000 + id, started },
        session: Pair { id: 7, host: 1007 },
        group: Pair { id: 0, host: 44 },
    };
    let observe = |table: &mut Table, tasks: &[SeenTask], second| {
        table.observe(&Seen { tasks: tasks.to_vec(), ..Seen::default() }, time(second)).unwrap();
    };
    observe(&mut table, &[task(8, 20), task(7, 10)], 2);
    observe(&mut table, &[task(8, 20)], 3);
    let row = table.to_real(&Id::Session(7)).unwrap();
    assert_eq!((row.real, row.started, row.since), (Id::Session(1007), Some(10), time(2)));
    assert_eq!(table.to_real(&Id::Group(0)), None, "a group that is led from outside has no name in the job");
    assert_eq!(table.to_real(&Id::Process(7)), None);
}

#[test]
fn a_damaged_table_is_refused() {
    let mut table = Table::new(generation(0, 1));
    let pair = Pair { id: 1, host: 50 };
    let task =
        SeenTask { process: 1, thread: 1, host: HostTask { id: 50, started: 9 }, session: pair, group: pair };
    let descriptors = vec![SeenDescriptor { process: 1, fd: 3, description: 0 }];
    let seen = Seen { tasks: vec![task], descriptors, descriptions: [(0, "x".into())].into(), booted: None };
    table.observe(&seen, time(2)).unwrap();
    table.bind(&Id::Device("/dev/a".into()), &Id::Device("/dev/b".into()), time(2)).unwrap();
    let good = serde_json::to_value(&table).unwrap();
    assert_eq!(serde_json::from_value::<Table>(good.clone()).unwrap(), table);
    let refused = |why: &str, damage: &dyn Fn(&mut serde_json::Value)| {
        let mut bad = good.clone();
        damage(&mut bad);
        let said = serde_json::from_value::<Table>(bad).unwrap_err().to_string();
        assert!(said.contains(why), "{why:?} is not in {said:?}");
    };
    refused("format is 2", &|t| t["format"] = 2.into());
    refused("unknown field", &|t| t["colour"] = 2.into());
    refused("unknown field", &|t| t["tasks"]["bound"][0]["colour"] = 2.into());
    refused("no generation", &|t| t["generations"] = serde_json::json!([]));
    refused("must have ended", &|t| t["generations"][0]["until"] = "2026-01-01T00:00:00Z".into());
    refused("not a time", &|t| t["observed"] = "today".into());
    refused("out of place", &|t| t["tasks"]["bound"][0]["virtual"] = 0.into());
    refused("out of place", &|t| t["tasks"]["bound"][0]["generation"] = 1.into());
    refused("tid:1: it has no real id", &|t| t["tasks"]["bound"][0]["virtual"] = 4.into());
    refused("belongs to no process", &|t| t["processes"] = serde_json::json!({}));
    refused("tid:2: it has no real id", &|t| t["processes"]["1"] = serde_json::json!([1, 2]));
    refused("its leader is missing", &|t| t["processes"] = serde_json::json!({"2": [1]}));
    refused("its description is missing", &|t| t["descriptions"] = serde_json::json!({}));
    refused("no such process", &|t| t["descriptors"] = serde_json::json!({"2": {"1": 0}}));
    refused("is bound twice", &|t| {
        let again = t["devices"]["bound"][0].clone();
        t["devices"]["bound"].as_array_mut().unwrap().push(again);
    });
    refused("have one real id", &|t| {
        let mut again = t["devices"]["bound"][0].clone();
        again["virtual"] = "/dev/c".into();
        t["devices"]["bound"].as_array_mut().unwrap().push(again);
    });
    let text = good.to_string().replace(r#""descriptors":{"1""#, r#""descriptors":{"1":{},"1""#);
    let said = serde_json::from_str::<Table>(&text).unwrap_err().to_string();
    assert!(said.contains("1 comes twice"), "{said}");
}

#[test]
fn a_file_that_is_no_table_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(file::NAME);
    assert_eq!(Table::read(dir.path()).unwrap(), None);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(Table::read(dir.path()).unwrap_err().to_string().contains("not a regular file"));
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(Table::read(dir.path()).unwrap_err().to_string().contains("too many"));
    std::fs::remove_file(&path).unwrap();
    std::fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
    assert!(Table::read(dir.path()).unwrap_err().to_string().contains("larger than 64 MiB"));
}
