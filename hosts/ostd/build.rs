//! Gives the linker OSTD's memory layout.

fn main() {
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    println!("cargo:rerun-if-changed={arch}.ld");
    println!("cargo:rustc-link-arg-bins=-T{folder}/{arch}.ld");
}
