//! Programs of every kind: at fixed addresses or movable, alone or with libraries.
//!
//! It is built four times: as static programs are by default (position-independent), as `-non-pie`, and both with the C
//! library as a file that an interpreter loads: `-dynamic` and `-dynamic-non-pie`.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_void};
use std::fs;
use std::ops::Range;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};

use roundtable_programs::child::{self, End};
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::{Errno, procfs, sys, tests};

tests! { is_of_its_kind, load_address, entry_in_the_auxiliary_vector, headers_in_the_auxiliary_vector,
base_of_the_interpreter, names_in_maps, rights_of_the_segments, data_and_zeroes, program_break, thread_locals,
signal_handlers, threads, exit_status, starts_itself, interpreter_by_hand, missing_interpreter }

/// What this program's name says of it.
struct Kind {
    fixed: bool,
    dynamic: bool,
}

fn kind() -> Kind {
    let path = fs::read_link("/proc/self/exe").expect("/proc/self/exe");
    let name = path.file_name().expect("a name").to_str().expect("an ASCII name").to_string();
    Kind { fixed: name.ends_with("-non-pie"), dynamic: name.contains("-dynamic") }
}

/// This program's file.
struct Image {
    bytes: Vec<u8>,
    header: libc::Elf64_Ehdr,
    segments: Vec<libc::Elf64_Phdr>,
}

impl Image {
    fn read() -> Image {
        let bytes = fs::read("/proc/self/exe").expect("/proc/self/exe");
        // SAFETY: any bytes are a header, and a program that runs has as many.
        let header: libc::Elf64_Ehdr = unsafe { bytes.as_ptr().cast::<libc::Elf64_Ehdr>().read_unaligned() };
        let segments = (0..usize::from(header.e_phnum)).map(|number| {
            let start = header.e_phoff as usize + number * size_of::<libc::Elf64_Phdr>();
            let segment = &bytes[start..start + size_of::<libc::Elf64_Phdr>()];
            // SAFETY: any bytes are a program header, and these are as many.
            unsafe { segment.as_ptr().cast::<libc::Elf64_Phdr>().read_unaligned() }
        });
        Image { header, segments: segments.collect(), bytes }
    }

    fn segments(&self, kind: u32) -> impl Iterator<Item = &libc::Elf64_Phdr> {
        self.segments.iter().filter(move |segment| segment.p_type == kind)
    }

    fn interpreter(&self) -> Option<&str> {
        let segment = self.segments(libc::PT_INTERP).next()?;
        let text = &self.bytes[segment.p_offset as usize..][..segment.p_filesz as usize];
        Some(CStr::from_bytes_with_nul(text).expect("a path with an end").to_str().expect("an ASCII path"))
    }

    /// What was added to the file's addresses, told by where the file's first page went.
    fn bias(&self) -> usize {
        let first = self.segments(libc::PT_LOAD).next().expect("a segment");
        let area = own_areas().into_iter().find(|area| area.offset == 0).expect("the file's start is mapped");
        area.range.start - (first.p_vaddr as usize & !4095)
    }
}

/// A line of /proc/self/maps.
struct Area {
    range: Range<usize>,
    rights: String,
    offset: u64,
    name: String,
}

fn areas() -> Vec<Area> {
    let text = fs::read_to_string("/proc/self/maps").expect("/proc/self/maps");
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        let range = number(start)?..number(end)?;
        let rights = words.next()?.to_string();
        let offset = number(words.next()?)? as u64;
        Some(Area { range, rights, offset, name: words.nth(2).unwrap_or_default().to_string() })
    };
    text.lines().map(|line| parse(line).unwrap_or_else(|| panic!("maps says {line:?}"))).collect()
}

fn area_at(address: usize) -> Area {
    let found = areas().into_iter().find(|area| area.range.contains(&address));
    found.unwrap_or_else(|| panic!("nothing is mapped at {address:#x}"))
}

/// The areas that this program's file is mapped in.
fn own_areas() -> Vec<Area> {
    let exe = fs::read_link("/proc/self/exe").expect("/proc/self/exe");
    areas().into_iter().filter(|area| exe.as_os_str() == &*area.name).collect()
}

fn auxiliary(kind: u64) -> usize {
    // SAFETY: takes an integer.
    unsafe { libc::getauxval(kind) as usize }
}

fn is_of_its_kind() {
    let (kind, image) = (kind(), Image::read());
    assert_eq!(image.header.e_type, if kind.fixed { libc::ET_EXEC } else { libc::ET_DYN });
    assert_eq!(image.interpreter().is_some(), kind.dynamic, "{:?}", image.interpreter());
}

fn load_address() {
    let (kind, image) = (kind(), Image::read());
    let bias = image.bias();
    if kind.fixed {
        assert_eq!(bias, 0);
        assert!(
            area_at(load_address as *const () as usize).range.end < 1 << 32,
            "not where linkers put programs"
        );
    } else {
        // Never where programs with fixed addresses are.
        assert!(bias > 1 << 32 && bias.is_multiple_of(4096), "{bias:#x}");
    }
    if kind.dynamic && !kind.fixed {
        if procfs::has_near_layout() {
            let here = 0;
            assert_eq!(bias >> 30, (&raw const here as usize) >> 30, "{bias:#x} is not near the stack");
        } else {
            // Two thirds up, so that the libraries above and the heap behind it have room; random by up to a terabyte.
            assert!((0x5555_5555_4000..0x5655_5555_5000).contains(&bias), "{bias:#x}");
        }
    }
    // Each segment is where the file wants it.
    for segment in image.segments(libc::PT_LOAD) {
        let start = bias + segment.p_vaddr as usize;
        let area = area_at(start);
        assert_eq!(area.offset + (start - area.range.start) as u64, segment.p_offset, "{start:#x}");
        area_at(start + segment.p_memsz as usize - 1);
    }
}

fn entry_in_the_auxiliary_vector() {
    let image = Image::read();
    assert_eq!(auxiliary(libc::AT_ENTRY), image.bias() + image.header.e_entry as usize);
    assert!(area_at(auxiliary(libc::AT_ENTRY)).rights.starts_with("r-x"));
}

fn headers_in_the_auxiliary_vector() {
    let image = Image::read();
    assert_eq!(auxiliary(libc::AT_PHNUM), image.segments.len());
    assert_eq!(auxiliary(libc::AT_PHENT), size_of::<libc::Elf64_Phdr>());
    let first = image.segments(libc::PT_LOAD).next().expect("a segment");
    assert_eq!(first.p_offset, 0);
    let mapped = image.bias() + (first.p_vaddr + image.header.e_phoff) as usize;
    assert_eq!(auxiliary(libc::AT_PHDR), mapped);
    let length = image.segments.len() * size_of::<libc::Elf64_Phdr>();
    // SAFETY: the headers that the C library has used at the start.
    let headers = unsafe { std::slice::from_raw_parts(auxiliary(libc::AT_PHDR) as *const u8, length) };
    assert_eq!(headers, &image.bytes[image.header.e_phoff as usize..][..length]);
}

fn base_of_the_interpreter() {
    let base = auxiliary(libc::AT_BASE);
    let Some(interpreter) = Image::read().interpreter().map(str::to_string) else {
        assert_eq!(base, 0, "there is no interpreter");
        return;
    };
    let area = area_at(base);
    assert_eq!((area.range.start, area.offset), (base, 0), "the interpreter's first page");
    // The name in maps is the file's own, which the path in the program may only link to.
    let file = fs::canonicalize(&interpreter).expect("the interpreter's file");
    assert_eq!(file.as_os_str(), &*area.name);
    // SAFETY: the first page of an ELF file.
    assert_eq!(unsafe { *(base as *const [u8; 4]) }, *b"\x7fELF");
}

fn names_in_maps() {
    let areas = areas();
    let named = |name: &str| areas.iter().filter(|area| area.name == name).count();
    for name in ["[stack]", "[vdso]"] {
        assert_eq!(named(name), 1, "{name}");
    }
    assert!(own_areas().len() >= 3);
    let here = 0;
    assert_eq!(area_at(&raw const here as usize).name, "[stack]");
    assert_eq!(area_at(auxiliary(libc::AT_SYSINFO_EHDR)).name, "[vdso]");
    // What the C library knows of is what the kernel says is there.
    let objects = objects();
    let has = |part: &str| objects.iter().any(|object| object.name.contains(part));
    assert_eq!(has("libc.so"), kind().dynamic, "{objects:?}");
    assert_eq!(has("ld-linux"), kind().dynamic, "{objects:?}");
    for object in objects.iter().filter(|object| object.name.starts_with('/')) {
        let file = fs::canonicalize(&object.name).expect("an object's file");
        for segment in &object.segments {
            let name = area_at(*segment).name;
            assert_eq!(file.as_os_str(), &*name, "{object:?}");
        }
    }
}

/// A file that the C library knows to be loaded, with where its segments begin.
#[derive(Debug)]
struct Object {
    name: String,
    segments: Vec<usize>,
}

fn objects() -> Vec<Object> {
    unsafe extern "C" fn add(info: *mut libc::dl_phdr_info, _: usize, list: *mut c_void) -> i32 {
        // SAFETY: the C library hands both over, and they live through the call.
        let (info, list) = unsafe { (&*info, &mut *list.cast::<Vec<Object>>()) };
        // SAFETY: a text, and as many headers as it says.
        let (name, headers) = unsafe {
            (
                CStr::from_ptr(info.dlpi_name),
                std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()),
            )
        };
        let loads = headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
        list.push(Object {
            name: name.to_string_lossy().into_owned(),
            segments: loads.map(|header| (info.dlpi_addr + header.p_vaddr) as usize).collect(),
        });
        0
    }
    let mut list: Vec<Object> = Vec::new();
    // SAFETY: the function takes what it is given here.
    unsafe { libc::dl_iterate_phdr(Some(add), (&raw mut list).cast()) };
    list
}

static CONSTANT: [u8; 8192] = [7; 8192];
static DATA: [AtomicU8; 8192] = [const { AtomicU8::new(9) }; 8192];
static ZEROES: [AtomicU8; 100_000] = [const { AtomicU8::new(0) }; 100_000];

fn rights_of_the_segments() {
    let code = rights_of_the_segments as *const () as usize;
    assert!(area_at(code).rights.starts_with("r-xp"));
    assert_eq!(fault::write(code, 0), Err(Fault::forbidden(code)));
    let constant = CONSTANT.as_ptr() as usize;
    assert!(area_at(constant).rights.starts_with("r--p"));
    assert_eq!(fault::write(constant, 0), Err(Fault::forbidden(constant)));
    assert_eq!(fault::read(constant), Ok(7));
    let data = DATA.as_ptr() as usize;
    assert!(area_at(data).rights.starts_with("rw-p"));
    assert_eq!(fault::write(data, 1), Ok(()));
}

fn data_and_zeroes() {
    assert!(DATA.iter().all(|byte| byte.load(SeqCst) == 9));
    assert!(ZEROES.iter().all(|byte| byte.load(SeqCst) == 0));
    // Behind the file's part of a segment, up to the end of its last page, and on to the end of the memory: none of the
    // file's next bytes may be seen.
    let image = Image::read();
    let last = image.segments(libc::PT_LOAD).last().expect("a segment");
    let end = image.bias() + (last.p_vaddr + last.p_memsz) as usize;
    for address in end..end.next_multiple_of(4096) {
        assert_eq!(fault::read(address), Ok(0), "{address:#x}, behind {end:#x}");
    }
    // What one process writes there is its own.
    child::in_child(|| {
        DATA[0].store(1, SeqCst);
        ZEROES[99_999].store(1, SeqCst);
    });
    assert_eq!((DATA[0].load(SeqCst), ZEROES[99_999].load(SeqCst)), (9, 0));
}

fn program_break() {
    let set = |address: usize| {
        // SAFETY: the C library sees that the break has moved, and takes its memory behind it.
        unsafe { sys::raw(libc::SYS_brk, [address, 0, 0, 0, 0, 0]) }.expect("brk never fails")
    };
    // In a child: the heap is in use, and what follows takes parts of it away from the C library.
    child::in_child(|| {
        let start = set(0);
        if kind().fixed {
            let image = Image::read();
            let last = image.segments(libc::PT_LOAD).last().expect("a segment");
            assert!(start >= (last.p_vaddr + last.p_memsz) as usize, "behind the program");
        }
        let first = start.next_multiple_of(4096);
        assert_eq!(set(first + 65536), first + 65536);
        assert_eq!(area_at(first).name, "[heap]");
        assert!(area_at(first).rights.starts_with("rw-p"));
        for page in (first..first + 65536).step_by(4096) {
            assert_eq!(fault::read(page), Ok(0));
            assert_eq!(fault::write(page, 1), Ok(()));
        }
        assert_eq!(set(first + 4096), first + 4096);
        assert_eq!(fault::read(first + 4096), Err(Fault::unmapped(first + 4096)));
        // Fresh again, not what was there before.
        assert_eq!(set(first + 8192), first + 8192);
        assert_eq!((fault::read(first), fault::read(first + 4096)), (Ok(1), Ok(0)));
        // Not over the program, and not so far that it meets what is above.
        assert_eq!(set(1), first + 8192);
        assert_eq!(set(0x7fff_ffff_f000), first + 8192);
    });
}

/// Thread-local memory as compilers lay it out: with a first value, without, and with an alignment.
#[repr(align(64))]
struct Aligned([u8; 64]);

thread_local! {
    static INITIAL: Cell<u64> = const { Cell::new(0x1234_5678_9abc_def0) };
    static ZERO: [Cell<u8>; 1000] = const { [const { Cell::new(0) }; 1000] };
    static ALIGNED: Aligned = const { Aligned([3; 64]) };
    static DROPPED: RefCell<Option<Arc<AtomicUsize>>> = const { RefCell::new(None) };
}

fn thread_locals() {
    let look = |value: u64| {
        assert_eq!(INITIAL.replace(value), 0x1234_5678_9abc_def0);
        ZERO.with(|zero| assert!(zero.iter().all(|byte| byte.replace(value as u8) == 0)));
        ALIGNED.with(|aligned| {
            assert!((aligned as *const Aligned).is_aligned() && aligned.0.iter().all(|&byte| byte == 3))
        });
    };
    look(1);
    let counted = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for number in 2..10 {
            let counted = counted.clone();
            scope.spawn(move || {
                look(number);
                DROPPED.set(Some(counted));
                assert_eq!(INITIAL.get(), number);
            });
        }
    });
    assert_eq!(INITIAL.get(), 1);
    assert!(ZERO.with(|zero| zero.iter().all(|byte| byte.get() == 1)));
    // A scope waits for its closures only; what their threads leave is dropped a moment later.
    assert!(sys::settles(std::time::Duration::from_secs(10), || Arc::strong_count(&counted) == 1));
}

static CAUGHT: AtomicI32 = AtomicI32::new(0);

extern "C" fn catch(signal: i32) {
    CAUGHT.store(signal, SeqCst);
}

fn signal_handlers() {
    // SAFETY: a handler that stores an atomic; the signal is sent to this thread.
    unsafe {
        libc::signal(libc::SIGUSR1, catch as *const () as usize);
        libc::raise(libc::SIGUSR1);
    }
    assert_eq!(CAUGHT.load(SeqCst), libc::SIGUSR1);
    // With a siginfo, on the program's own code; the handler changes where it goes on.
    assert_eq!(fault::read(0x1000), Err(Fault::unmapped(0x1000)));
    // Without a handler it is the end.
    let end = child::fork(|| {
        // SAFETY: takes integers.
        unsafe {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            (0x1000 as *const u8).read_volatile();
        }
    });
    assert_eq!(end.wait(), End::Signal(libc::SIGSEGV));
}

fn threads() {
    let turn = (Mutex::new(0), Condvar::new());
    const THREADS: usize = 8;
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            let (value, changed) = &turn;
            scope.spawn(move || {
                for _ in 0..50 {
                    let mut value = changed
                        .wait_while(value.lock().unwrap(), |value| *value % THREADS != number)
                        .unwrap();
                    *value += 1;
                    changed.notify_all();
                }
            });
        }
    });
    assert_eq!(*turn.0.lock().unwrap(), THREADS * 50);
    let values: Vec<_> = (0..10).map(|value| std::thread::spawn(move || value * value)).collect();
    assert_eq!(values.into_iter().map(|thread| thread.join().unwrap()).sum::<i32>(), 285);
}

static AT_EXIT: AtomicI32 = AtomicI32::new(-1);

extern "C" fn last_words() {
    // SAFETY: closes the descriptor that the parent waits on; nobody uses it after.
    unsafe { libc::close(AT_EXIT.load(SeqCst)) };
}

fn exit_status() {
    for status in [0, 1, 37, 255] {
        let child = child::fork_code(|| status);
        assert_eq!(child.wait(), End::Code(status));
    }
    // Through the C library, which calls what was registered.
    let (read, write) = roundtable_programs::file::pipe(0);
    let child = child::fork_code(|| {
        AT_EXIT.store(write.raw(), SeqCst);
        // SAFETY: the function closes a descriptor; the process ends here.
        unsafe {
            libc::atexit(last_words);
            libc::exit(42)
        }
    });
    drop(write);
    assert_eq!(read.read(&mut [0; 1]), Ok(0));
    assert_eq!(child.wait(), End::Code(42));
    // SAFETY: ends the process.
    assert_eq!(child::fork_code(|| unsafe { libc::abort() }).wait(), End::Signal(libc::SIGABRT));
}

fn starts_itself() {
    let list = Command::new("/proc/self/exe").arg("--list").output().expect("it starts");
    assert!(list.status.success() && list.stdout.starts_with(b"is_of_its_kind\n"), "{list:?}");
    let wrong = Command::new("/proc/self/exe").arg("no-such-subtest").stderr(Stdio::null()).status();
    assert_eq!(wrong.expect("it starts").code(), Some(2));
}

fn interpreter_by_hand() {
    // An interpreter is a program itself, and loads what it is told.
    let Some(interpreter) = Image::read().interpreter().map(str::to_string) else { return };
    let exe = fs::read_link("/proc/self/exe").expect("/proc/self/exe");
    let list = Command::new(&interpreter).arg(exe).arg("--list").output().expect("it starts");
    assert!(list.status.success() && list.stdout.starts_with(b"is_of_its_kind\n"), "{list:?}");
}

fn missing_interpreter() {
    let Some(interpreter) = Image::read().interpreter().map(str::to_string) else { return };
    let mut bytes = Image::read().bytes;
    let at =
        bytes.windows(interpreter.len()).position(|part| part == interpreter.as_bytes()).expect("its path");
    bytes[at + 1] = b'!';
    let path = format!("/tmp/loading-{}", sys::pid());
    fs::write(&path, &bytes).unwrap();
    // SAFETY: the path has an end.
    sys::check(unsafe { libc::chmod(sys::c_string(&path).as_ptr(), 0o755) }).unwrap();
    let error = Command::new(&path).spawn().expect_err("its interpreter is not there");
    assert_eq!(error.raw_os_error(), Some(Errno::ENOENT as i32));
    fs::remove_file(path).unwrap();
}
