//! What a thread has in the CPU, and what of it the kernel keeps elsewhere.
//!
//! - [`registers`]: the general registers and segment bases;
//! - [`xstate`]: x87, SSE, AVX, AVX-512, AMX, … , carried component by component from one CPU's layout to another's;
//! - [`layout`]: where this CPU keeps which component;
//! - [`packed`]: bytes as readable text;
//! - [`features`]: the instruction set extensions that programs may have found on a host;
//! - [`rseq`]: restartable sequences;
//! - [`calls`]: calls that a stop ends for good;
//! - [`sleep`]: calls that go on with the rest of their time;
//! - [`state`]: all of it together;
//! - [`timers`]: when sleeping threads are to wake up;
//! - [`vdso`]: whether two hosts have the same vDSO.

pub mod calls;
pub mod features;
pub mod layout;
pub mod packed;
pub mod registers;
pub mod rseq;
pub mod sleep;
pub mod state;
pub mod timers;
pub mod vdso;
pub mod xstate;
