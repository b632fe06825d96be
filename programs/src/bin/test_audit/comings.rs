//! Processes that come, go and change while the audit reads, and processes that are several in one memory.

use std::process::{Command, Stdio};

use roundtable_programs::child::{self, Child, waitpid};
use roundtable_programs::huge::{self, GIB, HugeFs};
use roundtable_programs::mem::{RW, SHARED};
use roundtable_programs::shared::Shared;

use crate::saying::{audit, expect, file_of};
use crate::scene::{FEW, PLACE, create, filled, map_at, stay, stays, touch};

/// Processes by fork, by exec and by both as fast as they come, some with the same file: no error, and no wrong verdict.
pub fn storm() {
    let mount = HugeFs::mount("");
    huge::pool(FEW as u64 + 2);
    let path = format!("{}/sga", mount.path);
    let file = create(&path);
    let map_and_touch = || {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
    };
    let _sharers = [stays(map_and_touch), stays(map_and_touch)];
    let program = std::env::current_exe().expect("our path").with_file_name("map_file");
    let control = Shared::new();
    let _forks = child::fork(|| {
        loop {
            child::in_child(map_and_touch);
            control.add(0);
        }
    });
    // Maps the file at another congruent address, becomes the same program again, and so on.
    let arguments = [&path, &(PLACE + 4 * GIB).to_string(), &GIB.to_string(), &FEW.to_string(), "again"];
    let mut execs =
        Command::new(program).args(arguments).stdin(Stdio::null()).spawn().expect("map_file starts");
    control.wait(0, 1);
    let before = control.get(0);
    for _ in 0..5 {
        let report = audit();
        let seen = file_of(&report, "huge", &path);
        let slots = seen["slots"].as_object().unwrap();
        assert!(slots["shared"].as_u64().unwrap() >= 2, "{seen}");
        // Those who come have touched it already, or not yet.
        assert!(slots.keys().all(|verdict| ["shared", "untouched"].contains(&verdict.as_str())), "{seen}");
        assert!(seen["differing_flags"].as_array().unwrap().is_empty(), "{seen}");
        assert_eq!(seen["tables"]["now"]["pmd"], 1, "{seen}");
    }
    let came = control.get(0) - before;
    assert!(came >= 5, "the storm did not blow: {came} processes came and went");
    assert_eq!(execs.try_wait().expect("waitpid"), None, "it runs on");
    execs.kill().expect("kill");
    execs.wait().expect("waitpid");
    std::fs::remove_file(&path).unwrap();
}

/// Threads are no processes, and neither is a child that lives in its parent's memory until it calls exec.
pub fn several_in_one_memory() {
    let (file, name) = filled(GIB, FEW);
    let control = Shared::new();
    let with_threads = || {
        map_at(PLACE, GIB, RW, SHARED, &file);
        for _ in 0..3 {
            std::thread::spawn(|| {
                touch(PLACE, FEW);
                stay()
            });
        }
        touch(PLACE, FEW);
    };
    let threads = stays(with_threads);
    let report = audit();
    let seen = file_of(&report, "huge", &name);
    expect(seen, &[("alone", 1)]);
    assert_eq!(seen["processes"], 1);
    threads.end();
    let parent = child::fork(|| {
        map_at(PLACE, GIB, RW, SHARED, &file);
        touch(PLACE, FEW);
        in_this_memory(&control);
    });
    control.wait(0, 1);
    let report = audit();
    let seen = file_of(&report, "huge", &name);
    expect(seen, &[("alone", 1)]);
    assert_eq!(seen["processes"], 1);
    end_both(parent, control.get(1) as i32);
}

/// Makes a child as vfork does: this process waits until the child ends.
fn in_this_memory(control: &Shared) {
    extern "C" fn run(control: *mut libc::c_void) -> i32 {
        // SAFETY: the parent waits, and with it its borrow of the counters.
        let control = unsafe { &*control.cast::<Shared>() };
        // SAFETY: takes nothing. (The C library remembers the parent's number; so the kernel itself is asked.)
        control.set(1, unsafe { libc::syscall(libc::SYS_getpid) } as u32);
        control.add(0);
        stay()
    }
    let mut stack = vec![0u128; 4096];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is the child's alone and lives until it has ended, for this call returns only then.
    let pid = unsafe {
        libc::clone(
            run,
            stack.as_mut_ptr_range().end.cast(),
            flags,
            std::ptr::from_ref(control).cast_mut().cast(),
        )
    };
    assert!(pid > 0, "clone: {}", std::io::Error::last_os_error());
    let _ = waitpid(pid, 0);
}

fn end_both(parent: Child, child: i32) {
    // SAFETY: takes integers; the child is there, for its parent has not waited for it.
    unsafe { libc::kill(child, libc::SIGKILL) };
    parent.ok();
}
