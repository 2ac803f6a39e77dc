//! Lists that rtnetlink(7) keeps of a namespace: each has a message for an entry, one to add it and one to take it away.

use crate::netlink::Netlink;
use crate::netlink::record::{Layout, Names, Record};
use crate::{Doing, Error, Failure};
use serde_json::to_string;

/// One such list.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    /// What an entry is called.
    pub name: &'static str,
    /// `RTM_NEWADDR` and the like; `RTM_DELADDR` is the next one, and `RTM_GETADDR` the one after that.
    pub new: u16,
    /// What an entry has.
    pub layout: Layout,
    /// Makes of what the kernel tells what it can be told; None for what is not kept.
    pub tidy: fn(Record) -> Option<Record>,
}

/// An entry that can't be read, and why.
pub(super) type Unread = (String, String);

impl List {
    /// All entries, in the kernel's order. `header` says which ones are meant.
    pub fn read(
        &self,
        route: &mut Netlink,
        header: &[u8],
        names: &Names,
    ) -> Result<(Vec<Record>, Vec<Unread>), Failure> {
        let all = route.dump(self.new + 2, header).doing(|| format!("list each {}", self.name))?;
        let (mut found, mut unread) = (Vec::new(), Vec::new());
        for message in all.iter().filter(|message| message.kind == self.new) {
            match self.layout.read(&message.payload, names) {
                Ok(record) => found.extend((self.tidy)(record)),
                Err(why) => unread.push((self.name.to_owned(), why)),
            }
        }
        Ok((found, unread))
    }

    /// All entries that can be read.
    pub fn now(&self, route: &mut Netlink, header: &[u8], names: &Names) -> Result<Vec<Record>, Failure> {
        self.read(route, header, names).map(|(found, _)| found)
    }

    /// Adds an entry; `flags` are `NLM_F_CREATE` and the like.
    pub fn add(&self, route: &mut Netlink, entry: &Record, flags: i32, names: &Names) -> Result<(), Error> {
        let message = self.message(entry, names)?;
        Ok(route.order(self.new, flags, &message, || format!("add the {} {}", self.name, plain(entry)))?)
    }

    /// Takes an entry away.
    pub fn remove(&self, route: &mut Netlink, entry: &Record, names: &Names) -> Result<(), Error> {
        let message = self.message(entry, names)?;
        Ok(route
            .order(self.new + 1, 0, &message, || format!("take away the {} {}", self.name, plain(entry)))?)
    }

    fn message(&self, entry: &Record, names: &Names) -> Result<Vec<u8>, Error> {
        let wrong =
            |why| Error::Damaged(format!("{}: the {} {}: {why}", super::FILE, self.name, plain(entry)));
        self.layout.write(entry, names).map_err(wrong)
    }
}

/// An entry for people.
pub(super) fn plain(entry: &Record) -> String {
    to_string(entry).unwrap_or_default()
}
