//! execve: what the new program gets, what it loses, and what cannot be executed.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

use roundtable_programs::file::Fd;
use roundtable_programs::harness::skip;
use roundtable_programs::kinds::call;
use roundtable_programs::mem::Map;
use roundtable_programs::place::become_user;
use roundtable_programs::shared::Shared;
use roundtable_programs::{Errno, child, procfs, sys, tests};

const BUSYBOX: &str = "/bin/busybox";

tests! { arguments_and_environment, empty_strings, big_arguments, too_big_an_argument, status_is_handed_on,
close_on_exec, files_stay_open, not_executable, not_a_program, missing, folder, script, script_with_argument,
script_of_a_script, script_without_interpreter, endless_script, auxiliary_vector, name_of_the_program,
by_descriptor, long_names_by_descriptor, text_is_busy, truncated_program, itself_many_times: 60, killed_among_its_threads: 60, no_argument_at_all, without_randomness,
not_to_be_read, not_to_be_read_while_it_starts: 60 }

fn busybox(applet: &str) -> Command {
    if !fs::exists(BUSYBOX).unwrap_or(false) {
        skip("there is no /bin/busybox");
    }
    let mut command = Command::new(BUSYBOX);
    command.arg(applet);
    command
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A file of its own for each subtest.
fn write_file(name: &str, content: &[u8], mode: u32) -> String {
    let path = format!("/tmp/exec-{}-{name}", sys::pid());
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&path)
        .unwrap()
        .write_all(content)
        .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn error_of(path: &str) -> Option<i32> {
    Command::new(path).spawn().err().and_then(|error| error.raw_os_error())
}

/// Where things are decides how many page tables a process needs, so they are where Linux has them.
fn without_randomness() {
    use std::os::unix::process::CommandExt;
    let mut command = busybox("cat");
    command.arg("/proc/self/maps");
    // SAFETY: sets a flag, which takes no memory and no lock.
    unsafe {
        command.pre_exec(|| match libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let maps = output(&mut command);
    let end_of = |wanted: &dyn Fn(&str) -> bool| {
        let line = maps.lines().rfind(|line| wanted(line)).expect("a mapping");
        let end = line.split(['-', ' ']).nth(1).expect("its end");
        usize::from_str_radix(end, 16).expect("an address")
    };
    assert_eq!(end_of(&|line| line.ends_with("[stack]")), 0x7fff_ffff_f000, "{maps}");
    // Where mappings without an address go: 128 MiB below.
    assert_eq!(end_of(&|line| line.ends_with("[vdso]")), 0x7fff_f7ff_f000, "{maps}");
}

fn arguments_and_environment() {
    let text = output(busybox("env").env_clear().env("A", "1").env("LONG", "x".repeat(1000)));
    assert_eq!(text, format!("A=1\nLONG={}\n", "x".repeat(1000)));
    let text = output(busybox("printf").args(["[%s]", "a b", "c\nd", "ü"]));
    assert_eq!(text, "[a b][c\nd][ü]");
}

fn empty_strings() {
    let text = output(busybox("printf").args(["[%s]", "", "x", ""]));
    assert_eq!(text, "[][x][]");
}

fn big_arguments() {
    // A megabyte in all, in pieces of 100 kB.
    let words: Vec<String> =
        (0..10).map(|number| char::from(b'a' + number).to_string().repeat(100_000)).collect();
    let text = output(busybox("printf").arg("%s").args(&words));
    assert_eq!(text, words.concat());
    let many: Vec<String> = (0..20_000).map(|number| number.to_string()).collect();
    assert_eq!(output(busybox("printf").arg("%s").args(&many)), many.concat());
}

fn too_big_an_argument() {
    let error = busybox("true").arg("x".repeat(200_000)).spawn().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::E2BIG));
    let error = busybox("true").args((0..40).map(|_| "x".repeat(100_000))).spawn().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::E2BIG));
}

fn status_is_handed_on() {
    assert_eq!(busybox("sh").args(["-c", "exit 37"]).status().unwrap().code(), Some(37));
}

fn close_on_exec() {
    let file = roundtable_programs::file::Fd::temporary();
    // Away from the numbers that the program's own files get.
    // SAFETY: takes integers.
    let closed = sys::check(unsafe { libc::fcntl(file.raw(), libc::F_DUPFD_CLOEXEC, 100) }).unwrap();
    let closed = roundtable_programs::file::Fd::own(closed);
    let open = roundtable_programs::file::Fd::temporary();
    // SAFETY: takes integers.
    unsafe { libc::fcntl(open.raw(), libc::F_SETFD, 0) };
    let text = output(busybox("ls").arg("/proc/self/fd"));
    let numbers: Vec<i32> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert!(numbers.contains(&open.raw()) && !numbers.contains(&closed.raw()), "{numbers:?}");
}

fn files_stay_open() {
    let path = write_file("input", b"some\ntext\n", 0o644);
    let file = fs::File::open(&path).unwrap();
    assert_eq!(output(busybox("cat").stdin(file)), "some\ntext\n");
    fs::remove_file(path).unwrap();
}

fn not_executable() {
    let path = write_file("plain", b"#!/bin/busybox sh\n", 0o644);
    assert_eq!(error_of(&path), Some(libc::EACCES));
    fs::remove_file(path).unwrap();
}

fn not_a_program() {
    for content in [
        &b""[..],
        b"x",
        b"just some text\n",
        b"\x7fELF",
        b"\x7fELF\x02\x01\x01\0 and nothing more of it at all....",
    ] {
        let path = write_file("junk", content, 0o755);
        assert_eq!(error_of(&path), Some(libc::ENOEXEC), "{content:?}");
        fs::remove_file(path).unwrap();
    }
}

fn missing() {
    assert_eq!(error_of("/no/such/thing"), Some(libc::ENOENT));
    assert_eq!(error_of("/proc/version/x"), Some(libc::ENOTDIR));
}

fn folder() {
    assert_eq!(error_of("/tmp"), Some(libc::EACCES));
}

fn script() {
    let _ = busybox("true");
    let path = write_file("script", b"#!/bin/busybox sh\necho \"$0 $1 $#\"\n", 0o755);
    assert_eq!(output(Command::new(&path).args(["one", "two"])), format!("{path} one 2\n"));
    fs::remove_file(path).unwrap();
}

fn script_with_argument() {
    let _ = busybox("true");
    // All that follows the interpreter is one argument.
    let path = write_file("script", b"#!  /bin/busybox \t echo  \nignored\n", 0o755);
    assert_eq!(output(Command::new(&path).arg("x")), format!("{path} x\n"));
    fs::remove_file(path).unwrap();
}

fn script_of_a_script() {
    let _ = busybox("true");
    let inner = write_file("inner", b"#!/bin/busybox echo\n", 0o755);
    let outer = write_file("outer", format!("#!{inner} word\n").as_bytes(), 0o755);
    assert_eq!(output(&mut Command::new(&outer)), format!("{inner} word {outer}\n"));
    fs::remove_file(inner).unwrap();
    fs::remove_file(outer).unwrap();
}

fn script_without_interpreter() {
    let path = write_file("script", b"#!/no/such/interpreter\n", 0o755);
    assert_eq!(error_of(&path), Some(libc::ENOENT));
    fs::remove_file(&path).unwrap();
    let path = write_file("script", b"#!\n", 0o755);
    assert_eq!(error_of(&path), Some(libc::ENOEXEC));
    fs::remove_file(&path).unwrap();
}

fn endless_script() {
    let path = format!("/tmp/exec-{}-endless", sys::pid());
    let path = write_file("endless", format!("#!{path}\n").as_bytes(), 0o755);
    assert_eq!(error_of(&path), Some(libc::ELOOP));
    fs::remove_file(&path).unwrap();
}

fn auxiliary_vector() {
    // SAFETY: takes an integer.
    let value = |kind| unsafe { libc::getauxval(kind) };
    assert_eq!(value(libc::AT_PAGESZ), 4096);
    assert_eq!((value(libc::AT_UID), value(libc::AT_SECURE)), (0, 0));
    assert_ne!(value(libc::AT_SYSINFO_EHDR), 0, "the vDSO");
    assert_ne!(value(libc::AT_ENTRY), 0);
    assert_eq!(value(libc::AT_PHENT), 56);
    assert_ne!(value(libc::AT_PHNUM), 0);
    // SAFETY: 16 bytes of the kernel's, on this process's stack; and a text.
    unsafe {
        let random = std::slice::from_raw_parts(value(libc::AT_RANDOM) as *const u8, 16);
        assert!(random.iter().any(|&byte| byte != 0));
        let name = std::ffi::CStr::from_ptr(value(libc::AT_EXECFN) as *const _).to_str().unwrap();
        assert!(name.ends_with("test_exec"), "{name}");
        let platform = std::ffi::CStr::from_ptr(value(libc::AT_PLATFORM) as *const _);
        assert_eq!(platform.to_str(), Ok("x86_64"));
    }
    // The stack is aligned, and the kernel's copy of the vector in /proc is the same.
    let bytes = fs::read("/proc/self/auxv").unwrap();
    let words: Vec<u64> = bytes.chunks(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect();
    assert!(words.chunks(2).any(|pair| pair == [libc::AT_PAGESZ, 4096]));
    assert_eq!(words[words.len() - 2], 0);
}

fn name_of_the_program() {
    let exe = fs::read_link("/proc/self/exe").unwrap();
    assert!(exe.to_str().unwrap().ends_with("test_exec"));
    let text = output(busybox("cat").arg("/proc/self/cmdline"));
    assert_eq!(text, "/bin/busybox\0cat\0/proc/self/cmdline\0");
    assert_eq!(output(busybox("cat").arg0("busybox").arg("/proc/self/comm")), "busybox\n");
}

fn by_descriptor() {
    let _ = busybox("true");
    let end = child::fork(|| {
        let file = roundtable_programs::file::Fd::open(BUSYBOX, libc::O_RDONLY).unwrap();
        let words = ["busybox", "true"].map(sys::c_string);
        let pointers = [words[0].as_ptr(), words[1].as_ptr(), std::ptr::null()];
        let none = [std::ptr::null::<libc::c_char>()];
        // SAFETY: the words are NUL-terminated, both lists end with null.
        unsafe { libc::fexecve(file.raw(), pointers.as_ptr(), none.as_ptr()) };
        panic!("fexecve: {}", Errno::last());
    });
    end.ok();
}

/// execveat(2), which comes back only if that fails.
fn execveat(directory: i32, name: &[u8]) -> Errno {
    let name = CString::new(name).unwrap();
    let none = [std::ptr::null::<libc::c_char>()];
    // SAFETY: the name is NUL-terminated, the lists end with null.
    unsafe { libc::syscall(libc::SYS_execveat, directory, name.as_ptr(), none.as_ptr(), none.as_ptr(), 0) };
    Errno::last()
}

/// With `/dev/fd/FD/` in front, what the program is told of its name is longer than a path may be.
fn long_names_by_descriptor() {
    const LONG: usize = libc::PATH_MAX as usize - 1;
    let root = roundtable_programs::file::Fd::open("/", libc::O_RDONLY | libc::O_DIRECTORY).unwrap();
    // Bytes that are no text.
    assert_eq!(execveat(root.raw(), &[0xff; LONG]), Errno::ENAMETOOLONG);
    let path = write_file("long", b"#!/no/such/interpreter\n", 0o755);
    let name = path.strip_prefix('/').unwrap();
    let name = format!("{}{name}", "./".repeat((LONG - name.len()) / 2));
    assert_eq!(execveat(root.raw(), name.as_bytes()), Errno::ENOENT);
    fs::remove_file(&path).unwrap();
    let path = write_file("long", b"no program\n", 0o755);
    assert_eq!(execveat(root.raw(), name.as_bytes()), Errno::ENOEXEC);
    fs::remove_file(path).unwrap();
}

fn copy_of_busybox() -> String {
    let _ = busybox("true");
    write_file("busybox", &fs::read(BUSYBOX).unwrap(), 0o755)
}

fn text_is_busy() {
    let path = copy_of_busybox();
    let writer = fs::OpenOptions::new().write(true).open(&path).unwrap();
    assert_eq!(error_of(&path), Some(libc::ETXTBSY));
    drop(writer);
    // By its own name busybox knows the copy for no applet: it would say so between the lines of the results, and end.
    let mut sleeper = Command::new(&path).arg0("sleep").arg("100").spawn().unwrap();
    // The child may still be this program for a moment.
    let exe = format!("/proc/{}/exe", sleeper.id());
    assert!(sys::settles(std::time::Duration::from_secs(10), || fs::read_link(&exe)
        .is_ok_and(|exe| exe == *path)));
    let error = fs::OpenOptions::new().write(true).open(&path).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETXTBSY));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap();
    fs::remove_file(path).unwrap();
}

fn truncated_program() {
    let whole = fs::read("/proc/self/exe").unwrap();
    for length in [100, 200, 1000, 5000, whole.len() / 2] {
        let path = write_file("cut", &whole[..length], 0o755);
        // It does not start, or it dies of what is missing; the kernel goes on.
        if let Ok(status) = Command::new(&path).arg("--list").stdout(std::process::Stdio::null()).status() {
            assert!(!status.success(), "{length} bytes of {} run", whole.len());
        }
        fs::remove_file(path).unwrap();
    }
}

fn itself_many_times() {
    for _ in 0..50 {
        let text = output(Command::new("/proc/self/exe").arg("--list"));
        assert!(text.starts_with("arguments_and_environment\n"));
    }
}

/// Who executes a program waits for its other threads to end, and may be killed meanwhile: the program's memory, which is ready by
/// then, goes with it.
fn killed_among_its_threads() {
    const THREADS: usize = 100;
    let path = copy_of_busybox();
    for _ in 0..20 {
        let (mut ready, told) = std::io::pipe().unwrap();
        let child = child::fork(|| {
            for _ in 0..THREADS {
                std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_secs(1000)));
            }
            (&told).write_all(b"r").unwrap();
            let error = Command::new(&path).arg0("sleep").arg("1000").exec();
            panic!("{error}");
        });
        drop(told);
        std::io::Read::read_exact(&mut ready, &mut [0]).unwrap();
        child.kill(libc::SIGKILL);
        child.wait();
    }
    let write = || fs::OpenOptions::new().write(true).open(&path);
    // As long as somebody has it as a program it cannot be opened so.
    let free = sys::settles(std::time::Duration::from_secs(5), || write().is_ok());
    assert!(free, "{:?}", write());
    fs::remove_file(path).unwrap();
}

fn no_argument_at_all() {
    let _ = busybox("true");
    let end = child::fork_code(|| {
        let path = sys::c_string(BUSYBOX);
        let none = [std::ptr::null::<libc::c_char>()];
        // SAFETY: lists that end at once. The kernel gives such a program one empty argument.
        unsafe { libc::execve(path.as_ptr(), none.as_ptr(), none.as_ptr()) };
        99
    });
    assert_ne!(end.wait(), child::End::Code(99));
}

/// Who may execute a program and not read it does not get at it by way of its memory either.
fn not_to_be_read() {
    const PROGRAM: &str = "/not-to-be-read";
    if !fs::exists(BUSYBOX).unwrap_or(false) {
        skip("there is no busybox");
    }
    fs::copy(BUSYBOX, PROGRAM).unwrap();
    for (mode, expected) in [(0o711, Err(Errno::EPERM)), (0o755, Ok(8))] {
        fs::set_permissions(PROGRAM, fs::Permissions::from_mode(mode)).unwrap();
        child::in_child(|| {
            become_user(1000, 1000);
            let mut program = Command::new(PROGRAM).arg0("sleep").arg("1000").spawn().unwrap();
            let pid = program.id() as i32;
            // The parent goes on in the middle of the child's execve.
            procfs::wait_for_sleep(pid);
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            // Where its code begins; 0 or 1 for whom that does not concern.
            let start = stat.rsplit(')').next().unwrap().split_whitespace().nth(23).unwrap();
            let mut buffer = [0u8; 8];
            let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: 8 };
            let remote = libc::iovec { iov_base: start.parse::<usize>().unwrap() as *mut _, iov_len: 8 };
            let vectors = [&raw const local as usize, &raw const remote as usize];
            let read = call(libc::SYS_process_vm_readv, [pid as usize, vectors[0], 1, vectors[1], 1, 0]);
            program.kill().unwrap();
            program.wait().unwrap();
            assert_eq!((read, mode), (expected, mode));
        });
    }
    fs::remove_file(PROGRAM).unwrap();
}

/// A program that takes long to give up its old memory, and then is one that may not be read.
fn becomes(program: &str, shared: &Shared) -> child::Child {
    let (path, name, argument) = (sys::c_string(program), c"sleep", c"1000");
    child::fork(|| {
        become_user(1000, 1000);
        // SAFETY: take integers. As a program of the user's own: others of the user's may look into it.
        unsafe {
            libc::prctl(libc::PR_SET_DUMPABLE, 1);
            libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
        }
        let old = Map::anonymous(192 << 20);
        (0..old.length).step_by(sys::PAGE).for_each(|at| old.set(at, 1));
        shared.add(0);
        shared.wait(1, 1);
        let arguments = [name.as_ptr(), argument.as_ptr(), std::ptr::null()];
        // SAFETY: all are NUL-terminated, and the list ends with a null.
        unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) };
    })
}

/// Where the code of a process begins, for who may know.
fn code_of(pid: i32) -> usize {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(23).unwrap().parse().unwrap()
}

/// The old program may be looked into by its user, the new one may not: not even while the memory of the old one goes.
fn not_to_be_read_while_it_starts() {
    const PROGRAM: &str = "/not-to-be-read-2";
    if !fs::exists(BUSYBOX).unwrap_or(false) {
        skip("there is no busybox");
    }
    fs::copy(BUSYBOX, PROGRAM).unwrap();
    fs::set_permissions(PROGRAM, fs::Permissions::from_mode(0o711)).unwrap();
    let shared = Shared::new();
    shared.add(1);
    let sample = becomes(PROGRAM, &shared);
    shared.wait(0, 1);
    procfs::wait_for_sleep(sample.pid);
    let code = code_of(sample.pid);
    sample.end();
    let shared = Shared::new();
    let victim = becomes(PROGRAM, &shared);
    let pid = victim.pid;
    child::in_child(|| {
        become_user(1000, 1000);
        let mut buffer = [0u8; 8];
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: 8 };
        let remote = libc::iovec { iov_base: code as *mut _, iov_len: 8 };
        let vectors = [&raw const local as usize, &raw const remote as usize];
        let read = || call(libc::SYS_process_vm_readv, [pid as usize, vectors[0], 1, vectors[1], 1, 0]);
        let open = |name: &str| Fd::open(&format!("/proc/{pid}/{name}"), libc::O_RDONLY);
        shared.wait(0, 1);
        assert_eq!(read(), Err(Errno::EFAULT), "nothing is there in the old program");
        assert!(open("mem").is_ok());
        shared.add(1);
        let (mut memories, mut shut) = (Vec::new(), 0);
        // For good, when it has been shut twice: the new program does not open itself.
        while shut < 2 {
            match (open("mem"), open("maps")) {
                (Err(_), Err(_)) => shut += 1,
                opened => memories.push(opened),
            }
            if memories.len() > 100 {
                memories.drain(..50);
            }
            let got = read();
            assert!(matches!(got, Err(Errno::EFAULT | Errno::EPERM)), "the program is read: {got:?}");
        }
        for (memory, maps) in memories {
            let mut text = vec![0; 65536];
            let got = memory.map(|memory| memory.read_at(&mut text[..8], code as u64));
            assert!(!matches!(got, Ok(Ok(8))), "the program is read through a descriptor");
            let got = maps.map_or(0, |maps| maps.read(&mut text).unwrap_or(0));
            let text = String::from_utf8_lossy(&text[..got]);
            assert!(!text.contains(PROGRAM), "its areas are shown: {text}");
        }
    });
    victim.end();
    fs::remove_file(PROGRAM).unwrap();
}
