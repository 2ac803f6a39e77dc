//! Links the model that the Makefile has built.

use std::env::var;

fn main() {
    println!("cargo::rerun-if-env-changed=MODEL");
    let Ok(model) = var("MODEL") else {
        println!("cargo::error=MODEL is not set: `make -C plugins/verilated` builds this program");
        return;
    };
    println!("cargo::rerun-if-changed={model}/libmodel.a");
    println!("cargo::rustc-link-search=native={model}");
    println!("cargo::rustc-link-lib=static=model");
    println!("cargo::rustc-link-lib=dylib=stdc++");
    println!("cargo::rustc-link-lib=dylib=m");
}
