//! Numbers that a vendor's driver has invented, as the job knows them and as the driver does here.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The handles of a job, by their name spaces. In a space no two virtual numbers have the same real one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Handles(BTreeMap<String, BTreeMap<u64, u64>>);

impl Handles {
    /// Binds a virtual number, in the place of what it was bound to.
    ///
    /// # Errors
    /// The virtual number that has that real one already.
    pub fn bind(&mut self, space: &str, virtual_number: u64, real: u64) -> Result<(), u64> {
        match self.to_virtual(space, real) {
            Some(other) if other != virtual_number => Err(other),
            _ => {
                self.0.entry(space.into()).or_default().insert(virtual_number, real);
                Ok(())
            }
        }
    }

    /// Takes a binding away, and says whether there was one.
    pub fn unbind(&mut self, space: &str, virtual_number: u64) -> bool {
        self.0.get_mut(space).is_some_and(|numbers| numbers.remove(&virtual_number).is_some())
    }

    /// What the driver calls it.
    pub fn to_real(&self, space: &str, virtual_number: u64) -> Option<u64> {
        self.0.get(space)?.get(&virtual_number).copied()
    }

    /// What the job calls it.
    pub fn to_virtual(&self, space: &str, real: u64) -> Option<u64> {
        self.0.get(space)?.iter().find(|(_, number)| **number == real).map(|(number, _)| *number)
    }

    /// What the job calls a number that comes from the driver. A new one gets itself as its virtual number, or the next that
    /// is free: so they are those of the vendor until the first move. The answer also says whether it is new.
    pub fn meet(&mut self, space: &str, real: u64) -> (u64, bool) {
        if let Some(known) = self.to_virtual(space, real) {
            return (known, false);
        }
        let numbers = self.0.entry(space.into()).or_default();
        let mut number = real;
        while numbers.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        numbers.insert(number, real);
        (number, true)
    }

    /// All of them: name space, virtual number, real number.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.0.iter().flat_map(|(space, numbers)| {
            numbers.iter().map(move |(virtual_number, real)| (space.as_str(), *virtual_number, *real))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_agree() {
        let mut handles = Handles::default();
        assert_eq!(handles.bind("session", 1, 48211), Ok(()));
        assert_eq!(handles.bind("session", 1, 7), Ok(()));
        assert_eq!((handles.to_real("session", 1), handles.to_virtual("session", 7)), (Some(7), Some(1)));
        assert_eq!(handles.to_virtual("session", 48211), None);
        assert_eq!(handles.to_real("buffer", 1), None);
        assert_eq!(handles.bind("session", 2, 7), Err(1));
        assert!(handles.unbind("session", 1) && !handles.unbind("session", 1));
    }

    #[test]
    fn a_new_number_of_the_driver_is_its_own_virtual_one_unless_that_is_taken() {
        let mut handles = Handles::default();
        assert_eq!(handles.meet("session", 5), (5, true));
        assert_eq!(handles.meet("session", 5), (5, false));
        // After a move the old number stands for another one.
        handles.bind("session", 5, 9).unwrap();
        assert_eq!(handles.meet("session", 5), (6, true));
        assert_eq!(handles.iter().collect::<Vec<_>>(), [("session", 5, 9), ("session", 6, 5)]);
    }
}
