//! `ckrun-verilated`: softemu's server, testbench and plugin, with a SystemVerilog design that Verilator has compiled.

fn main() -> std::process::ExitCode {
    ckrun_softemu::cli::main::<ckrun_verilated::Model>()
}
