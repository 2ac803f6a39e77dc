//! What a new process keeps of the memory that it has from the process that made it. Pages that both had in common at the
//! checkpoint are in common again, as fork(2) leaves them.

use super::layout::Layout;
use super::vma::{Backing, Flags, Span, Vma};
use crate::image::PageRun;
use std::borrow::Cow;
use std::collections::BTreeSet;

/// How a process gets its memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan<'a> {
    /// Inherited and kept, by ascending address.
    pub kept: Vec<Span>,
    /// Parts of these in which inherited pages are to be forgotten.
    pub forgotten: Vec<Span>,
    /// Pages to be written.
    pub runs: Cow<'a, [PageRun]>,
}

impl<'a> Plan<'a> {
    /// Nothing is inherited.
    pub fn fresh(runs: &'a [PageRun]) -> Self {
        Plan { runs: runs.into(), ..Plan::default() }
    }

    /// What the child keeps of its maker's memory, whose layout and pages are the first two. A mapping is kept if it is
    /// the same in both and most of the child's pages in it are the maker's.
    pub fn inherit(maker: &Layout, has: &[PageRun], child: &Layout, wants: &[PageRun]) -> Self {
        let mut plan = Inheritance::default();
        for vma in &child.vmas {
            let runs = inside(wants, vma.range);
            let first = maker.vmas.partition_point(|theirs| theirs.range.end <= vma.range.start);
            let same = maker.vmas[first..]
                .iter()
                .take_while(|theirs| theirs.range.start < vma.range.end)
                .filter(|theirs| alike(theirs, vma))
                .map(|theirs| theirs.range.overlap(vma.range));
            let mut from = 0;
            for kept in same {
                let before = runs[from..].partition_point(|run| run.vaddr < kept.start);
                let within = runs[from + before..].partition_point(|run| run.vaddr + run.len() <= kept.end);
                let (start, end) = (from + before, from + before + within);
                plan.runs.extend(&runs[from..start]);
                from = end;
                plan.weigh(maker, has, child, kept, &runs[start..end], runs);
            }
            plan.runs.extend(&runs[from..]);
        }
        let Inheritance { kept, forgotten, runs } = plan;
        Plan { kept, forgotten, runs: runs.into() }
    }

    /// The parts of `range` that are not inherited.
    pub(super) fn missing(&self, range: Span) -> impl Iterator<Item = Span> {
        let first = self.kept.partition_point(|kept| kept.end <= range.start);
        let mut kept = self.kept[first..].iter().take_while(move |kept| kept.start < range.end);
        let mut at = range.start;
        std::iter::from_fn(move || {
            while at < range.end {
                let next = kept.next().copied().unwrap_or(Span::new(range.end, range.end));
                let piece = Span::new(at, next.start);
                at = next.end;
                if !piece.is_empty() {
                    return Some(piece);
                }
            }
            None
        })
    }
}

/// A plan that is being made.
#[derive(Default)]
struct Inheritance {
    kept: Vec<Span>,
    forgotten: Vec<Span>,
    runs: Vec<PageRun>,
}

impl Inheritance {
    /// Keeps `kept` or not. The child's pages there are `wanted`; `all` are those of its mapping.
    fn weigh(
        &mut self,
        maker: &Layout,
        has: &[PageRun],
        child: &Layout,
        kept: Span,
        wanted: &[PageRun],
        all: &[PageRun],
    ) {
        let theirs = inside(has, kept);
        let (same, other): (Vec<PageRun>, Vec<PageRun>) = wanted.iter().partition(|run| holds(theirs, run));
        let bytes = |runs: &[PageRun]| runs.iter().map(PageRun::len).sum::<u64>();
        // A run that lies across the border would be written to what is kept and what is not, in one go.
        let across = |run: &PageRun| {
            let span = span(run);
            !span.overlap(kept).is_empty() && !kept.holds(span)
        };
        let guards = |layout: &Layout| {
            let within = layout.guards.iter().map(|guard| guard.overlap(kept));
            within.filter(|guard| !guard.is_empty()).collect::<BTreeSet<_>>()
        };
        if bytes(&same) < bytes(&other) || all.iter().any(across) || guards(maker) != guards(child) {
            self.runs.extend(wanted);
            return;
        }
        self.kept.push(kept);
        self.runs.extend(&other);
        // What the maker has and the child has not.
        let mut wanted = wanted.iter().map(span).peekable();
        for run in theirs {
            let theirs = span(run).overlap(kept);
            let mut at = theirs.start;
            while at < theirs.end {
                while wanted.next_if(|span| span.end <= at).is_some() {}
                let next = wanted.peek().map_or(u64::MAX, |span| span.start);
                if next > at {
                    self.forgotten.push(Span::new(at, next.min(theirs.end)));
                }
                at = wanted.peek().map_or(u64::MAX, |span| span.end).max(next);
            }
        }
    }
}

fn span(run: &PageRun) -> Span {
    Span::new(run.vaddr, run.vaddr + run.len())
}

/// The runs of which at least a part lies in `range`.
fn inside(runs: &[PageRun], range: Span) -> &[PageRun] {
    let start = runs.partition_point(|run| run.vaddr + run.len() <= range.start);
    let end = runs.partition_point(|run| run.vaddr < range.end);
    runs.get(start..end).unwrap_or_default()
}

/// All pages of `run` are in the image once, for `theirs` as well.
fn holds(theirs: &[PageRun], run: &PageRun) -> bool {
    let mut at = run.vaddr;
    for their in inside(theirs, span(run)) {
        let place = |run: &PageRun| run.offset.wrapping_sub(run.vaddr);
        if their.vaddr > at || their.file != run.file || place(their) != place(run) {
            return false;
        }
        at = their.vaddr + their.len();
    }
    at >= run.vaddr + run.len()
}

/// A child that was forked has, where both lie, what it needs.
fn alike(theirs: &Vma, vma: &Vma) -> bool {
    // The kernel gives these to no child as they are, or gives them without what they hold.
    let lost = Flags::DONT_FORK.and(Flags::WIPE_ON_FORK).and(Flags::DROPPABLE);
    // Locks are not inherited, but they are set last.
    let locks = Flags::LOCKED.and(Flags::LOCK_ON_FAULT);
    let place = |vma: &Vma| match vma.backing {
        Backing::Object { offset, .. } => offset.wrapping_sub(vma.range.start),
        _ => 0,
    };
    let thing = |vma: &Vma| match vma.backing {
        Backing::Object { id, shared, .. } => Some((id, shared)),
        _ => None,
    };
    std::mem::discriminant(&theirs.backing) == std::mem::discriminant(&vma.backing)
        && (thing(theirs), place(theirs)) == (thing(vma), place(vma))
        && (theirs.prot, &theirs.name, &theirs.policy) == (vma.prot, &vma.name, &vma.policy)
        && theirs.flags.without(locks) == vma.flags.without(locks)
        && !theirs.flags.meets(lost)
        // The vdso is one thing, wherever it is.
        && (matches!(vma.backing, Backing::Anonymous | Backing::Object { .. }) || theirs.range == vma.range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{PAGE, Prot};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn run(page: u64, pages: u32, place: u64) -> PageRun {
        PageRun { vaddr: page * PAGE, pages, file: 0, flags: 0, offset: place * PAGE, digest: 0 }
    }

    fn pages(start: u64, end: u64) -> Span {
        Span::new(start * PAGE, end * PAGE)
    }

    fn layout(ranges: &[Span]) -> Layout {
        let vma = |range: &Span| Vma {
            range: *range,
            prot: Prot::READ,
            backing: Backing::Anonymous,
            flags: Flags::default(),
            name: None,
            policy: None,
        };
        Layout { vmas: ranges.iter().map(vma).collect(), ..Layout::default() }
    }

    #[test]
    fn most_pages_decide() {
        let both = layout(&[pages(10, 20)]);
        let has = [run(10, 4, 0), run(15, 3, 4)];
        // The child has changed page 12, has not page 13 and 17, and has page 19 in addition.
        let wants = [run(10, 2, 0), run(12, 1, 50), run(15, 2, 4), run(19, 1, 51)];
        let plan = Plan::inherit(&both, &has, &both, &wants);
        assert_eq!(plan.kept, [pages(10, 20)]);
        assert_eq!(plan.forgotten, [pages(13, 14), pages(17, 18)]);
        assert_eq!(*plan.runs, [wants[1], wants[3]]);
        // One page in common of four.
        let wants = [run(10, 1, 0), run(11, 3, 50)];
        let plan = Plan::inherit(&both, &has, &both, &wants);
        assert_eq!(plan, Plan::fresh(&wants));
    }

    #[test]
    fn a_part_can_be_kept() {
        // The stack of the maker was larger, its heap smaller.
        let maker = layout(&[pages(10, 20), pages(30, 40)]);
        let child = layout(&[pages(10, 24), pages(34, 40)]);
        let has = [run(10, 10, 0), run(32, 8, 10)];
        let wants = [run(10, 10, 0), run(20, 3, 40), run(34, 6, 12)];
        let plan = Plan::inherit(&maker, &has, &child, &wants);
        assert_eq!(plan.kept, [pages(10, 20), pages(34, 40)]);
        assert_eq!(*plan.runs, [wants[1]]);
        assert_eq!(plan.forgotten, []);
        assert_eq!(plan.missing(pages(10, 24)).collect::<Vec<_>>(), [pages(20, 24)]);
        assert_eq!(plan.missing(pages(34, 40)).count(), 0);
        assert_eq!(
            plan.missing(pages(0, 50)).collect::<Vec<_>>(),
            [pages(0, 10), pages(20, 34), pages(40, 50)]
        );
        // A run across the border of what could be kept.
        let wants = [run(10, 13, 0)];
        assert_eq!(Plan::inherit(&maker, &has, &child, &wants).runs, &wants[..]);
    }

    #[test]
    fn what_differs_is_made_anew() {
        let maker = layout(&[pages(10, 20)]);
        let has = [run(10, 10, 0)];
        let differ = |change: fn(&mut Layout)| {
            let mut child = maker.clone();
            change(&mut child);
            Plan::inherit(&maker, &has, &child, &has) == Plan::fresh(&has)
        };
        assert!(!differ(|_| {}));
        assert!(!differ(|child| child.vmas[0].flags = Flags::LOCKED));
        assert!(differ(|child| child.vmas[0].prot = Prot::WRITE));
        assert!(differ(|child| child.vmas[0].flags = Flags::GROWS_DOWN));
        assert!(differ(|child| child.vmas[0].name = Some("x".into())));
        assert!(differ(|child| child.guards = vec![pages(12, 13)]));
        assert!(differ(|child| child.vmas[0].backing = Backing::Object { id: 0, offset: 0, shared: false }));
        let mut wiped = maker.clone();
        wiped.vmas[0].flags = Flags::WIPE_ON_FORK;
        assert_eq!(Plan::inherit(&wiped, &has, &wiped, &has), Plan::fresh(&has));
    }

    /// The pages of a process: which page of the image each is.
    type Pages = BTreeMap<u64, u64>;

    fn pages_of(runs: &[PageRun]) -> Pages {
        let of = |run: &PageRun| {
            let (vaddr, offset) = (run.vaddr, run.offset);
            (0..u64::from(run.pages)).map(move |n| (vaddr + n * PAGE, offset + n * PAGE))
        };
        runs.iter().flat_map(of).collect()
    }

    /// Runs of pages 8 to 55, from what each page is: nothing, the same as in all, or one of its own. Runs end at the
    /// borders of `ranges`, as those of a dump do.
    fn runs_of(kinds: &[u8], own: u64, ranges: &[Span]) -> Vec<PageRun> {
        let mut runs: Vec<PageRun> = Vec::new();
        for (page, kind) in (8..).zip(kinds) {
            let place = match kind % 4 {
                0 => continue,
                1 => own + page,
                _ => page,
            };
            let border = ranges.iter().any(|range| range.start == page * PAGE || range.end == page * PAGE);
            if !ranges.iter().any(|range| range.holds(pages(page, page + 1))) {
                continue;
            }
            match runs.last_mut() {
                Some(last)
                    if !border
                        && last.vaddr + last.len() == page * PAGE
                        && last.offset + last.len() == place * PAGE =>
                {
                    last.pages += 1;
                }
                _ => runs.push(run(page, 1, place)),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn following_a_plan_gives_the_child_its_memory(
            theirs in proptest::collection::vec(any::<u8>(), 48),
            own in proptest::collection::vec(any::<u8>(), 48),
            cuts in (8_u64..24, 24_u64..40, 40_u64..56, 8_u64..24, 24_u64..40, 40_u64..56),
        ) {
            let ranges = |a, b, c| [pages(a, b), pages(b, b + (c - b) / 2), pages(c, 56)]
                .into_iter().filter(|range| !range.is_empty()).collect::<Vec<_>>();
            let (has, wants) = (ranges(cuts.0, cuts.1, cuts.2), ranges(cuts.3, cuts.4, cuts.5));
            let (maker, child) = (layout(&has), layout(&wants));
            let (has, wants) = (runs_of(&theirs, 1000, &has), runs_of(&own, 2000, &wants));
            let plan = Plan::inherit(&maker, &has, &child, &wants);
            let inherited = |vaddr: &u64| {
                let page = Span::new(*vaddr, vaddr + PAGE);
                plan.kept.iter().any(|kept| kept.holds(page)) && !plan.forgotten.iter().any(|gone| gone.holds(page))
            };
            let mut got: Pages = pages_of(&has).into_iter().filter(|(vaddr, _)| inherited(vaddr)).collect();
            let written = pages_of(&plan.runs);
            // Large mappings are filled by putting pages where none are.
            for vma in &child.vmas {
                let fresh = plan.missing(vma.range).eq([vma.range]);
                prop_assert!(!fresh || !got.keys().any(|vaddr| vma.range.holds(Span::new(*vaddr, vaddr + PAGE))));
            }
            got.extend(written);
            prop_assert_eq!(got, pages_of(&wants));
            prop_assert!(plan.runs.is_sorted_by_key(|run| run.vaddr));
            prop_assert!(plan.kept.is_sorted());
        }
    }
}
