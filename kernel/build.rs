//! Hands the linker script to the linker when the kernel is built for bare metal.

fn main() {
    println!("cargo::rerun-if-changed=linker.ld");
    println!("cargo::rerun-if-changed=build.rs");
    // `cargo check` for the host never links, and must not see a kernel's script.
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
        println!("cargo::rustc-link-arg-bins=-T{folder}/linker.ld");
        // GNU ld and rust-lld agree on these; 4 KiB keeps the image compact.
        for argument in ["-zmax-page-size=4096", "-znoexecstack", "--no-dynamic-linker", "--build-id=none"] {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}
