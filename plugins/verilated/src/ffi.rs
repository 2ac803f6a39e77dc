//! The functions of model.cpp.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::NonNull;

/// What is asked at the bus: the numbers of accelerator.sv.
pub mod operation {
    pub const READ_REGISTER: u32 = 0;
    pub const WRITE_REGISTER: u32 = 1;
    pub const WRITE_RAM: u32 = 2;
    pub const PUSH: u32 = 3;
    pub const POP: u32 = 4;
    pub const FLIP: u32 = 5;
    pub const READ_RAM: u32 = 6;
    pub const PEEK: u32 = 7;
}

#[repr(C)]
struct Opaque {
    _private: [u8; 0],
}

type Take = extern "C" fn(*mut c_void, *const u8, usize);

// SAFETY: the declarations are those of model.cpp.
unsafe extern "C" {
    safe fn model_digest() -> *const c_char;
    safe fn model_ram() -> u32;
    safe fn model_fifo() -> u32;
    safe fn model_power_on(boot: u64) -> *mut Opaque;
    fn model_free(of: *mut Opaque);
    fn model_step(of: *mut Opaque, cycles: u64, until_interrupt: c_int) -> u64;
    fn model_access(of: *mut Opaque, operation: u32, address: u32, data: u32, element: u32);
    fn model_look(of: *mut Opaque, operation: u32, address: u32, element: u32, value: *mut u32) -> c_int;
    fn model_port(of: *mut Opaque, tck: c_int, tms: c_int, tdi: c_int);
    fn model_port_reset(of: *mut Opaque, reset: c_int);
    fn model_port_tdo(of: *mut Opaque) -> c_int;
    fn model_cycle(of: *mut Opaque) -> u64;
    fn model_interrupt(of: *mut Opaque) -> c_int;
    fn model_full(of: *mut Opaque) -> c_int;
    fn model_empty(of: *mut Opaque) -> c_int;
    fn model_save(of: *mut Opaque, take: Take, whom: *mut c_void);
    fn model_load(of: *mut Opaque, bytes: *const u8, length: usize) -> c_int;
}

/// Words of RAM and of each FIFO.
pub fn sizes() -> (u32, u32) {
    (model_ram(), model_fifo())
}

/// The digest of the model's sources.
pub fn digest() -> &'static str {
    // SAFETY: a string constant of ASCII digits with its end.
    unsafe { CStr::from_ptr(model_digest()) }.to_str().unwrap_or_default()
}

/// A model. Not Send: Verilator asserts that one thread has it.
#[derive(Debug)]
pub struct Raw(NonNull<Opaque>);

impl Raw {
    /// A new one. Without memory there is nothing that could go on.
    pub fn power_on(boot: u64) -> Raw {
        match NonNull::new(model_power_on(boot)) {
            Some(model) => Raw(model),
            None => std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u64; 1024]>()),
        }
    }

    pub fn step(&mut self, cycles: u64, until_interrupt: bool) -> u64 {
        // SAFETY: as for all calls below: the pointer is that of a living model, which is this value's alone and belongs to
        // one thread, since it is neither Send nor Sync.
        unsafe { model_step(self.0.as_ptr(), cycles, until_interrupt.into()) }
    }

    pub fn access(&mut self, operation: u32, address: u32, data: u32, element: u32) {
        // SAFETY: see step().
        unsafe { model_access(self.0.as_ptr(), operation, address, data, element) }
    }

    /// Only inputs of the model change by it, which nobody sees.
    pub fn look(&self, operation: u32, address: u32, element: u32) -> Option<u32> {
        let mut value = 0;
        // SAFETY: see step(); the value is written to a living u32.
        let there = unsafe { model_look(self.0.as_ptr(), operation, address, element, &raw mut value) };
        (there != 0).then_some(value)
    }

    pub fn set_port(&mut self, tck: bool, tms: bool, tdi: bool) {
        // SAFETY: see step().
        unsafe { model_port(self.0.as_ptr(), tck.into(), tms.into(), tdi.into()) }
    }

    pub fn reset_port(&mut self, reset: bool) {
        // SAFETY: see step().
        unsafe { model_port_reset(self.0.as_ptr(), reset.into()) }
    }

    pub fn tdo(&self) -> bool {
        // SAFETY: see step().
        unsafe { model_port_tdo(self.0.as_ptr()) != 0 }
    }

    pub fn cycle(&self) -> u64 {
        // SAFETY: see step().
        unsafe { model_cycle(self.0.as_ptr()) }
    }

    pub fn interrupt(&self) -> bool {
        // SAFETY: see step().
        unsafe { model_interrupt(self.0.as_ptr()) != 0 }
    }

    pub fn full(&self) -> bool {
        // SAFETY: see step().
        unsafe { model_full(self.0.as_ptr()) != 0 }
    }

    pub fn empty(&self) -> bool {
        // SAFETY: see step().
        unsafe { model_empty(self.0.as_ptr()) != 0 }
    }

    pub fn save(&self) -> Vec<u8> {
        extern "C" fn take(whom: *mut c_void, bytes: *const u8, length: usize) {
            // SAFETY: whom is the vector below, which nobody else uses meanwhile; the bytes live during the call.
            unsafe { (*whom.cast::<Vec<u8>>()).extend_from_slice(std::slice::from_raw_parts(bytes, length)) }
        }
        let mut bytes = Vec::new();
        // SAFETY: see step(); the callback gets the vector that it expects.
        unsafe { model_save(self.0.as_ptr(), take, (&raw mut bytes).cast()) }
        bytes
    }

    pub fn load(&mut self, bytes: &[u8]) -> bool {
        // SAFETY: see step(); pointer and length are those of a slice.
        unsafe { model_load(self.0.as_ptr(), bytes.as_ptr(), bytes.len()) != 0 }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: see step(); it is not used any more.
        unsafe { model_free(self.0.as_ptr()) }
    }
}
