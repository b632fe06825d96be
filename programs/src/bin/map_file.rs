//! Maps a file at an address, touches it, says so, and stays until its standard input ends: a process of its own kin.
//!
//! With `again` behind the other arguments it says nothing and becomes the same program anew, for ever.

use std::io::Read;
use std::os::unix::process::CommandExt;

use roundtable_programs::file::Fd;
use roundtable_programs::huge::HUGE;
use roundtable_programs::mem::{FIXED, NORESERVE, RW, SHARED, mmap};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [program, path, address, length, pages, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: map_file PATH ADDRESS LENGTH PAGES [again]");
        std::process::exit(2);
    };
    let number = |text: &str| text.parse::<usize>().expect("a number");
    let file = Fd::open(path, libc::O_RDWR).expect("open");
    let (address, length) = (number(address), number(length));
    mmap(address, length, RW, SHARED | FIXED | NORESERVE, file.raw(), 0).expect("mmap");
    for page in 0..number(pages) {
        // SAFETY: inside the mapping that was just made.
        unsafe { ((address + page * HUGE) as *const u8).read_volatile() };
    }
    if rest == ["again"] {
        panic!("exec: {}", std::process::Command::new(program).args(&arguments[1..]).exec());
    }
    println!("ready");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
