//! The vDSO: a shared object in every process that tells the time without a system call.
//!
//! The code is position-independent assembly in the kernel's read-only data. At boot it is copied into a page of its own, behind an ELF header, dynamic
//! symbols and versions that are made here. The page before it holds the data: the parameters of the time-stamp counter, which never
//! change, and the distance of real time from monotonic time, one word that is read in one piece. So no sequence lock is needed.

use alloc::vec::Vec;
use core::arch::global_asm;
use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::PAGE;
use crate::arch::{clock, features};
use crate::memory::PhysAddr;
use crate::memory::frame::{Frame, Use};
use crate::namespaces;
use crate::sync::Once;

/// Pages of the kernel's that programs see.
pub struct SpecialPages {
    /// As maps show it.
    pub name: &'static str,
    frame: Once<Frame>,
}

impl SpecialPages {
    /// The page at `index`.
    pub(super) fn frame(&self, index: u64) -> Option<PhysAddr> {
        // Time looks different from another time namespace: the code there asks the kernel.
        let pages =
            if core::ptr::eq(self, &DATA) && namespaces::time::is_shifted() { &SHIFTED_DATA } else { self };
        if index == 0 { pages.frame.get().map(Frame::phys) } else { None }
    }
}

/// The code.
pub static IMAGE: SpecialPages = SpecialPages { name: "[vdso]", frame: Once::new() };
/// The data, one page before the code.
pub static DATA: SpecialPages = SpecialPages { name: "[vvar]", frame: Once::new() };

/// The data in another time namespace than the first.
static SHIFTED_DATA: SpecialPages = SpecialPages { name: "[vvar]", frame: Once::new() };

/// Bytes of data and code together; the code is the second page.
pub const LEN: u64 = 2 * PAGE;
/// Where in the image the code begins.
const TEXT: usize = 0x800;

/// What the code reads; offsets are known to the assembly.
#[repr(C)]
struct Data {
    base: AtomicU64,
    mult: AtomicU64,
    realtime_offset: AtomicI64,
    has_rdtscp: AtomicU64,
    /// The clocks that the code tells, a bit each.
    clocks: AtomicU64,
}

/// Realtime (0, coarse 5, TAI 11); monotonic (1, raw 4, coarse 6) and boot time (7).
const REALTIME_CLOCKS: u64 = 0x821;
const UPTIME_CLOCKS: u64 = 0x0d2;

global_asm!(
    r#"
.pushsection .rodata.vdso, "a"
.balign 64
.global vdso_text, vdso_text_end
.global vdso_clock_gettime, vdso_gettimeofday, vdso_time, vdso_getcpu, vdso_clock_getres
vdso_text:

# Monotonic nanoseconds to RAX. Leaves the data's address in R8; uses RDX.
vdso_now:
    leaq vdso_text - {TEXT} - 4096(%rip), %r8
    lfence
    rdtsc
    shlq $32, %rdx
    orq %rdx, %rax
    subq (%r8), %rax
    jnc 1f
    xorl %eax, %eax
1:  mulq 8(%r8)
    shrdq $32, %rdx, %rax
    retq

# The clocks that the data names; the rest asks the kernel.
.balign 16
vdso_clock_gettime:
    cmpl $11, %edi
    ja 3f
    leaq vdso_text - {TEXT} - 4096(%rip), %r8
    movl 32(%r8), %ecx
    btl %edi, %ecx
    jnc 3f
    call vdso_now
    movl $0x821, %ecx
    btl %edi, %ecx
    jnc 2f
    addq 16(%r8), %rax
2:  xorl %edx, %edx
    movl $1000000000, %ecx
    divq %rcx
    movq %rax, (%rsi)
    movq %rdx, 8(%rsi)
    xorl %eax, %eax
    retq
3:  movl $228, %eax
    syscall
    retq

.balign 16
vdso_gettimeofday:
    testq %rdi, %rdi
    jz 4f
    call vdso_now
    addq 16(%r8), %rax
    xorl %edx, %edx
    movl $1000000000, %ecx
    divq %rcx
    movq %rax, (%rdi)
    movl %edx, %eax
    xorl %edx, %edx
    movl $1000, %ecx
    divl %ecx
    movq %rax, 8(%rdi)
4:  testq %rsi, %rsi
    jz 5f
    movq $0, (%rsi)
5:  xorl %eax, %eax
    retq

.balign 16
vdso_time:
    call vdso_now
    addq 16(%r8), %rax
    xorl %edx, %edx
    movl $1000000000, %ecx
    divq %rcx
    testq %rdi, %rdi
    jz 6f
    movq %rax, (%rdi)
6:  retq

.balign 16
vdso_getcpu:
    leaq vdso_text - {TEXT} - 4096(%rip), %r8
    cmpq $0, 24(%r8)
    je 9f
    rdtscp
    testq %rdi, %rdi
    jz 7f
    movl %ecx, %eax
    andl $0xfff, %eax
    movl %eax, (%rdi)
7:  testq %rsi, %rsi
    jz 8f
    shrl $12, %ecx
    movl %ecx, (%rsi)
8:  xorl %eax, %eax
    retq
9:  movl $309, %eax
    syscall
    retq

.balign 16
vdso_clock_getres:
    cmpl $11, %edi
    ja 11f
    movl $0x8f3, %ecx
    btl %edi, %ecx
    jnc 11f
    testq %rsi, %rsi
    jz 10f
    movq $0, (%rsi)
    movq $1, 8(%rsi)
10: xorl %eax, %eax
    retq
11: movl $229, %eax
    syscall
    retq
vdso_text_end:
.popsection
"#,
    TEXT = const TEXT,
    options(att_syntax)
);

unsafe extern "C" {
    static vdso_text: u8;
    static vdso_text_end: u8;
    static vdso_clock_gettime: u8;
    static vdso_gettimeofday: u8;
    static vdso_time: u8;
    static vdso_getcpu: u8;
    static vdso_clock_getres: u8;
}

/// Makes the pages. The time-stamp counter must be calibrated.
pub(super) fn init() {
    let data = data_page(REALTIME_CLOCKS | UPTIME_CLOCKS);
    let shifted = data_page(REALTIME_CLOCKS);
    let image = Frame::alloc_zeroed(Use::Other).expect("memory for the vDSO");
    let bytes = build();
    assert!(bytes.len() <= PAGE as usize, "the vDSO fits into a page");
    // SAFETY: the frame is ours and large enough.
    unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), image.as_ptr(), bytes.len()) };
    for (pages, frame) in [(&DATA, data), (&SHIFTED_DATA, shifted), (&IMAGE, image)] {
        assert!(pages.frame.set(frame).is_ok(), "initialised twice");
    }
    set_realtime_offset(crate::time::clock::realtime_offset());
}

/// Data for code that tells these clocks.
fn data_page(clocks: u64) -> Frame {
    let data = Frame::alloc_zeroed(Use::Other).expect("memory for the vDSO's data");
    let parameters = clock::tsc_parameters();
    assert_eq!(parameters.shift, 32, "the vDSO's code shifts by 32");
    // SAFETY: the frame is zeroed, large enough, and ours alone for ever.
    let fields = unsafe { &*data.as_ptr().cast::<Data>() };
    // Relaxed: no program runs yet.
    fields.base.store(parameters.base, Ordering::Relaxed);
    fields.mult.store(parameters.mult, Ordering::Relaxed);
    fields.has_rdtscp.store(u64::from(features::has_rdtscp()), Ordering::Relaxed);
    fields.clocks.store(clocks, Ordering::Relaxed);
    data
}

/// Tells programs how far real time is from monotonic time, in nanoseconds.
pub fn set_realtime_offset(nanoseconds: i64) {
    for frame in [&DATA, &SHIFTED_DATA].into_iter().filter_map(|pages| pages.frame.get()) {
        // SAFETY: as in `data_page`; the frame is never freed.
        unsafe { &*frame.as_ptr().cast::<Data>() }.realtime_offset.store(nanoseconds, Ordering::SeqCst);
    }
}

/// The hash of System V symbol tables.
fn hash(name: &str) -> u32 {
    name.bytes().fold(0u32, |hash, byte| {
        let hash = (hash << 4).wrapping_add(u32::from(byte));
        let high = hash & 0xf000_0000;
        (hash ^ high >> 24) & !high
    })
}

/// An image that grows.
#[derive(Default)]
struct Image(Vec<u8>);

impl Image {
    fn align(&mut self, to: usize) -> u64 {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
        self.0.len() as u64
    }

    fn half(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    fn word(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn long(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }
}

/// Names with their places in a string table.
struct Strings(Vec<u8>);

impl Strings {
    fn add(&mut self, text: &str) -> u32 {
        let at = self.0.len() as u32;
        self.0.extend(text.bytes());
        self.0.push(0);
        at
    }
}

const SONAME: &str = "linux-vdso.so.1";
const VERSION: &str = "LINUX_2.6";
const HEADERS: usize = 2;

/// The ELF image.
fn build() -> Vec<u8> {
    let start = &raw const vdso_text as usize;
    let text_len = &raw const vdso_text_end as usize - start;
    let symbols = [
        ("__vdso_clock_gettime", &raw const vdso_clock_gettime as usize),
        ("__vdso_gettimeofday", &raw const vdso_gettimeofday as usize),
        ("__vdso_time", &raw const vdso_time as usize),
        ("__vdso_getcpu", &raw const vdso_getcpu as usize),
        ("__vdso_clock_getres", &raw const vdso_clock_getres as usize),
    ];
    let mut strings = Strings(alloc::vec![0]);
    let soname = strings.add(SONAME);
    let version = strings.add(VERSION);
    let mut image = Image::default();
    image.0.resize(64 + HEADERS * 56, 0);

    let dynsym = image.align(8);
    image.0.extend([0; 24]);
    for (name, address) in symbols {
        image.word(strings.add(name));
        // Global function, in a section that is not "undefined"; there are no section headers to be exact with.
        image.0.extend([0x12, 0]);
        image.half(1);
        image.long((TEXT + (address - start)) as u64);
        image.long(0);
    }
    let hash_table = image.align(8);
    // One chain for all: five symbols.
    let count = symbols.len() as u32 + 1;
    image.word(1);
    image.word(count);
    image.word(1);
    for next in [0].into_iter().chain(2..count).chain([0]) {
        image.word(next);
    }
    let versym = image.align(2);
    image.half(0);
    for _ in symbols {
        image.half(2);
    }
    let verdef = image.align(8);
    for (index, (name, at)) in [(SONAME, soname), (VERSION, version)].into_iter().enumerate() {
        let last = index == 1;
        image.half(1);
        image.half(u16::from(!last));
        image.half(index as u16 + 1);
        image.half(1);
        image.word(hash(name));
        image.word(20);
        image.word(if last { 0 } else { 28 });
        image.word(at);
        image.word(0);
    }
    let dynstr = image.align(1);
    let strsz = strings.0.len() as u64;
    image.0.extend(&strings.0);
    let dynamic = image.align(8);
    // DT_HASH, STRTAB, SYMTAB, STRSZ, SYMENT, SONAME, VERSYM, VERDEF, VERDEFNUM, NULL.
    let entries = [
        (4, hash_table),
        (5, dynstr),
        (6, dynsym),
        (10, strsz),
        (11, 24),
        (14, u64::from(soname)),
        (0x6fff_fff0, versym),
        (0x6fff_fffc, verdef),
        (0x6fff_fffd, 2),
        (0, 0),
    ];
    for (tag, value) in entries {
        image.long(tag);
        image.long(value);
    }
    let dynamic_len = entries.len() as u64 * 16;
    assert!(image.0.len() <= TEXT, "the vDSO's tables end before its code");
    image.0.resize(TEXT, 0);
    // SAFETY: the assembly above put `text_len` bytes there.
    image.0.extend(unsafe { core::slice::from_raw_parts(start as *const u8, text_len) });

    let mut head = Image::default();
    head.0.extend(b"\x7fELF\x02\x01\x01");
    head.align(16);
    // ET_DYN, EM_X86_64, version 1, no entry; program headers right behind; no sections.
    head.half(3);
    head.half(62);
    head.word(1);
    for value in [0, 64, 0] {
        head.long(value);
    }
    head.word(0);
    for value in [64, 56, HEADERS as u16, 64, 0, 0] {
        head.half(value);
    }
    let len = image.0.len() as u64;
    // PT_LOAD and PT_DYNAMIC: type, flags, offset, two addresses, two sizes, alignment.
    for (kind, flags, at, size, align) in [(1, 5, 0, len, PAGE), (2, 4, dynamic, dynamic_len, 8)] {
        head.word(kind);
        head.word(flags);
        for value in [at, at, at, size, size, align] {
            head.long(value);
        }
    }
    image.0[..head.0.len()].copy_from_slice(&head.0);
    image.0
}
