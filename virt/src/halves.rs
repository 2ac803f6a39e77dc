//! Work on two CPUs.
//!
//! A look at a large job is thousands of files of `/proc`. The kernel writes each of them for the one who reads it, so two
//! threads read twice as many.

use crate::memory::leave_the_callers_cpu;
use std::panic::resume_unwind;

/// For fewer looks than these a thread's start takes longer than it saves.
const FEW: usize = 32;

/// Does two things, at the same time if there are `many` looks in them: `there` in a thread of its own.
pub fn both<A: Send, B>(many: usize, there: impl FnOnce() -> A + Send, here: impl FnOnce() -> B) -> (A, B) {
    if many < FEW {
        return (there(), here());
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            leave_the_callers_cpu();
            there()
        });
        let here = here();
        (thread.join().unwrap_or_else(|panic| resume_unwind(panic)), here)
    })
}

/// Looks at each of `items`; the answers are in their order.
pub fn map<T: Sync, R: Send>(items: &[T], look: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (first, last) = items.split_at(items.len() / 2);
    let each = |items: &[T]| items.iter().map(&look).collect::<Vec<_>>();
    let (last, mut all) = both(items.len(), || each(last), || each(first));
    all.extend(last);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_in_the_order_of_their_questions() {
        for count in [0, 1, 2, FEW, 3 * FEW + 1] {
            let items: Vec<usize> = (0..count).collect();
            assert_eq!(map(&items, |item| item * 2), (0..count).map(|item| item * 2).collect::<Vec<_>>());
        }
    }
}
