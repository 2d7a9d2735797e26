//! Tells the program which compiler built it.

use std::process::Command;

fn main() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().ok();
    let version = version.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    let version = version.split_whitespace().nth(1).unwrap_or("unknown");
    println!("cargo::rustc-env=SYSTEM_BUS_RUSTC={version}");
    println!("cargo::rerun-if-env-changed=SYSTEM_BUS_REVISION");
    println!("cargo::rerun-if-changed=build.rs");
}
