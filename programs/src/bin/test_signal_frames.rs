//! Signal frames: what a handler finds of the fault, on which stack it runs, and what it leaves behind.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use roundtable_programs::child::{self, End};
use roundtable_programs::fault::{self, Fault};
use roundtable_programs::mem::{ANON, Map, NONE, PRIVATE, R, RW, mprotect};
use roundtable_programs::shared::Shared;
use roundtable_programs::signals::{ADDRESS, CODE, VALUE, catch, catch_with, count, mask, note, raise};
use roundtable_programs::{Errno, sys, tests};

tests! { alternate_stack, stack_overflow_on_alternate_stack, segv_siginfo, segv_of_protection, fpe_siginfo,
ill_siginfo, trap_siginfo, general_protection_siginfo, blocked_fault_kills, registers_survive,
vector_registers_survive, return_to_changed_place }

extern "C" fn note_stack(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let local = 0u8;
    // SAFETY: what the kernel gave.
    unsafe { note(signal, info, context) };
    VALUE.store(&raw const local as usize, SeqCst);
}

fn give_stack(size: usize) -> Map {
    let stack = Map::anonymous(size);
    let description = libc::stack_t { ss_sp: stack.address as *mut _, ss_flags: 0, ss_size: size };
    // SAFETY: the stack lives as long as the caller keeps it.
    sys::check(unsafe { libc::sigaltstack(&description, std::ptr::null_mut()) }).unwrap();
    stack
}

fn alternate_stack() {
    let stack = give_stack(64 << 10);
    catch_with(libc::SIGUSR1, note_stack, libc::SA_ONSTACK, &[]);
    raise(libc::SIGUSR1);
    assert!((stack.address..stack.address + stack.length).contains(&VALUE.load(SeqCst)));
    catch_with(libc::SIGUSR1, note_stack, 0, &[]);
    raise(libc::SIGUSR1);
    assert!(!(stack.address..stack.address + stack.length).contains(&VALUE.load(SeqCst)));
    let small = libc::stack_t { ss_sp: stack.address as *mut _, ss_flags: 0, ss_size: 100 };
    // SAFETY: it is refused.
    assert_eq!(sys::check(unsafe { libc::sigaltstack(&small, std::ptr::null_mut()) }), Err(Errno::ENOMEM));
}

extern "C" fn leave(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: ends the process.
    unsafe { libc::_exit(77) }
}

#[inline(never)]
fn dive(depth: u64) -> u64 {
    let space = std::hint::black_box([depth; 128]);
    if depth == u64::MAX { 0 } else { dive(depth + 1) + std::hint::black_box(space)[7] }
}

fn stack_overflow_on_alternate_stack() {
    let child = child::fork(|| {
        let _stack = give_stack(64 << 10);
        catch_with(libc::SIGSEGV, leave, libc::SA_ONSTACK, &[]);
        dive(0);
    });
    assert_eq!(child.wait(), End::Code(77));
    let child = child::fork(|| {
        // SAFETY: takes integers.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        dive(0);
    });
    assert_eq!(child.wait(), End::Signal(libc::SIGSEGV));
}

fn segv_siginfo() {
    let map = Map::anonymous(4096);
    let address = map.address + 123;
    drop(map);
    assert_eq!(fault::read(address), Err(Fault::unmapped(address)));
    assert_eq!(fault::write(address, 1), Err(Fault::unmapped(address)));
    assert_eq!(fault::read(8), Err(Fault::unmapped(8)));
}

fn segv_of_protection() {
    let map = Map::new(8192, R, PRIVATE | ANON, -1, 0).unwrap();
    assert_eq!(fault::write(map.address + 5000, 1), Err(Fault::forbidden(map.address + 5000)));
    assert_eq!(fault::read(map.address + 5000), Ok(0));
    mprotect(map.address, 4096, NONE).unwrap();
    assert_eq!(fault::read(map.address + 1), Err(Fault::forbidden(map.address + 1)));
    mprotect(map.address, 8192, RW).unwrap();
    assert_eq!(fault::write(map.address, 1), Ok(()));
}

static EXCEPTION_SHARED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn report_and_leave(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: what the kernel gave.
    unsafe { note(signal, info, context) };
    // SAFETY: a `Shared` that outlives the child.
    let shared = unsafe { &*(EXCEPTION_SHARED.load(SeqCst) as *const Shared) };
    // SAFETY: the context is the kernel's.
    let rip = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] };
    shared.set(0, signal as u32);
    shared.set(1, CODE.load(SeqCst) as u32);
    shared.set(2, u32::from(ADDRESS.load(SeqCst) == rip as usize));
    shared.set(3, u32::from(ADDRESS.load(SeqCst) == 0));
    // SAFETY: ends the process.
    unsafe { libc::_exit(0) }
}

/// Signal, code, whether the address is the instruction's, whether it is zero.
fn exception(signal: i32, cause: impl FnOnce()) -> (i32, i32, bool, bool) {
    let shared = Shared::new();
    EXCEPTION_SHARED.store(&raw const shared as usize, SeqCst);
    child::in_child(|| {
        catch_with(signal, report_and_leave, 0, &[]);
        cause();
        panic!("no signal came");
    });
    (shared.get(0) as i32, shared.get(1) as i32, shared.get(2) != 0, shared.get(3) != 0)
}

fn fpe_siginfo() {
    // SAFETY: faults on purpose.
    let got = exception(libc::SIGFPE, || unsafe {
        std::arch::asm!("xor edx, edx", "mov eax, 1", "xor ecx, ecx", "div ecx", out("eax") _, out("ecx") _, out("edx") _);
    });
    // FPE_INTDIV, at the instruction.
    assert_eq!(got, (libc::SIGFPE, 1, true, false));
}

fn ill_siginfo() {
    // SAFETY: faults on purpose.
    let got = exception(libc::SIGILL, || unsafe { std::arch::asm!("ud2") });
    // ILL_ILLOPN, at the instruction.
    assert_eq!(got, (libc::SIGILL, 2, true, false));
}

fn trap_siginfo() {
    // SAFETY: faults on purpose.
    let got = exception(libc::SIGTRAP, || unsafe { std::arch::asm!("int3") });
    // SI_KERNEL.
    assert_eq!((got.0, got.1), (libc::SIGTRAP, 0x80));
}

fn general_protection_siginfo() {
    // SAFETY: faults on purpose.
    let got = exception(libc::SIGSEGV, || unsafe { std::arch::asm!("hlt") });
    // SI_KERNEL, and no address.
    assert_eq!(got, (libc::SIGSEGV, 0x80, false, true));
    // SAFETY: faults on purpose; the address is not canonical.
    let got = exception(libc::SIGSEGV, || unsafe {
        std::arch::asm!("mov al, [{0}]", in(reg) 0x8000_0000_0000_0000u64, out("al") _);
    });
    assert_eq!(got, (libc::SIGSEGV, 0x80, false, true));
}

fn blocked_fault_kills() {
    let child = child::fork(|| {
        catch(libc::SIGSEGV);
        mask(libc::SIG_BLOCK, &[libc::SIGSEGV]);
        // SAFETY: faults on purpose.
        unsafe { (16 as *const u8).read_volatile() };
    });
    assert_eq!(child.wait(), End::Signal(libc::SIGSEGV));
}

fn registers_survive() {
    catch(libc::SIGUSR1);
    let mut sum = 0u64;
    for _ in 0..50 {
        let (rbx, r12, flags): (u64, u64, u64);
        // SAFETY: a system call that sends this process a signal; the handler's frame must give all registers back.
        unsafe {
            std::arch::asm!(
                "push rbx", "mov rbx, 0x1122334455667788", "stc", "syscall",
                "pushfq", "pop {flags}", "mov {rbx}, rbx", "pop rbx",
                rbx = out(reg) rbx, flags = out(reg) flags,
                inlateout("rax") libc::SYS_tgkill => _,
                in("rdi") sys::pid(), in("rsi") libc::gettid(), in("rdx") libc::SIGUSR1,
                inlateout("r12") 0x99u64 => r12, out("rcx") _, out("r11") _,
            );
        }
        assert_eq!((rbx, r12, flags & 1), (0x1122_3344_5566_7788, 0x99, 1));
        sum += rbx & 1;
    }
    assert_eq!((count(), sum), (50, 0));
}

extern "C" fn spoil_vectors(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: what the kernel gave.
    unsafe { note(signal, info, context) };
    // SAFETY: clobbers only what it says.
    unsafe { std::arch::asm!("pxor xmm5, xmm5", "pxor xmm12, xmm12", out("xmm5") _, out("xmm12") _) };
}

fn vector_registers_survive() {
    catch_with(libc::SIGUSR1, spoil_vectors, 0, &[]);
    for turn in 1..50u64 {
        let (five, twelve): (u64, u64);
        // SAFETY: a system call that sends this process a signal; the handler's frame must give all registers back.
        unsafe {
            std::arch::asm!(
                "movq xmm5, {a}", "movq xmm12, {a}", "syscall", "movq {five}, xmm5", "movq {twelve}, xmm12",
                a = in(reg) turn, five = lateout(reg) five, twelve = lateout(reg) twelve,
                inlateout("rax") libc::SYS_tgkill => _,
                in("rdi") sys::pid(), in("rsi") libc::gettid(), in("rdx") libc::SIGUSR1,
                out("rcx") _, out("r11") _, out("xmm5") _, out("xmm12") _,
            );
        }
        assert_eq!((five, twelve), (turn, turn));
    }
    assert_eq!(count(), 49);
}

fn return_to_changed_place() {
    // The probe's handler changes the instruction pointer in its frame; a thousand times, to see stacks stay right.
    for turn in 0..1000 {
        assert_eq!(fault::read(4096 * (turn % 10)), Err(Fault::unmapped(4096 * (turn % 10))));
    }
}
