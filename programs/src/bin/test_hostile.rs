//! What programs can do wrong: the offender gets its errno or its signal, the others go on, nothing leaks.

use roundtable_programs::child::{self, End};
use roundtable_programs::file::Fd;
use roundtable_programs::leak::Baseline;
use roundtable_programs::mem::{ANON, Map, PRIVATE, R, RW, mprotect};
use roundtable_programs::{Errno, sys, tests};

tests! { jump_to_nowhere, jump_to_data, jump_to_kernel, stack_overflow,
no_stack_at_all, privileged_instructions, bad_instructions, not_canonical, kernel_addresses, forged_frames: 60,
wild_thread_pointer, wild_stack_pointer_in_a_call, running_out_of_descriptors, running_out_of_address_space,
many_mappings: 60, trap_flag, alignment_check, unmapped_under_own_feet, deep_recursion_of_signals,
old_call_gates }

/// Not canonical, the kernel's half, unmapped, null, all ones.
const BAD: [usize; 6] =
    [0x8000_0000_0000_0000, 0xffff_8000_0000_1000, 0x1000_0000, 0, usize::MAX, 0x7fff_ffff_f000];

#[track_caller]
fn dies_of(signal: i32, act: impl FnOnce()) {
    let end = child::fork(|| {
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            // SAFETY: takes integers. Rust's runtime has handlers for its own message.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        act();
    })
    .wait();
    assert_eq!(end, End::Signal(signal));
}

fn jump_to_nowhere() {
    for address in [0usize, 0x1000_0000, 0x7fff_ffff_f000] {
        // SAFETY: faults on purpose.
        dies_of(libc::SIGSEGV, || unsafe { std::arch::asm!("jmp {0}", in(reg) address) });
    }
}

fn jump_to_data() {
    let page = Map::anonymous(4096);
    page.set(0, 0xc3);
    // Data cannot be executed: NX.
    // SAFETY: faults on purpose.
    dies_of(libc::SIGSEGV, || unsafe { std::arch::asm!("call {0}", in(reg) page.address, clobber_abi("C")) });
    mprotect(page.address, 4096, R | libc::PROT_EXEC).unwrap();
    // SAFETY: a page with a `ret`.
    child::in_child(|| unsafe { std::arch::asm!("call {0}", in(reg) page.address, clobber_abi("C")) });
}

fn jump_to_kernel() {
    for address in [0xffff_ffff_8000_0000usize, 0xffff_8000_0000_0000, 0xffff_ffff_ff60_0001] {
        // SAFETY: faults on purpose.
        dies_of(libc::SIGSEGV, || unsafe { std::arch::asm!("jmp {0}", in(reg) address) });
    }
}

#[inline(never)]
fn dive(depth: u64) -> u64 {
    let space = std::hint::black_box([depth; 128]);
    if depth == u64::MAX { 0 } else { dive(depth + 1) + std::hint::black_box(space)[7] }
}

fn stack_overflow() {
    let overflow = |times| (0..times).for_each(|_| dies_of(libc::SIGSEGV, || _ = dive(0)));
    overflow(3);
    let before = Baseline::take();
    overflow(8);
    before.check();
}

fn no_stack_at_all() {
    for stack in BAD {
        // The signal's frame cannot be written, so it kills although it has a handler.
        // SAFETY: faults on purpose.
        dies_of(libc::SIGSEGV, || unsafe {
            roundtable_programs::fault::read(0).unwrap_err();
            std::arch::asm!("mov rsp, {0}", "mov al, [8]", "ud2", in(reg) stack, options(noreturn))
        });
    }
    let end = child::fork(|| {
        // SAFETY: faults on purpose.
        unsafe { std::arch::asm!("xor esp, esp", "push rax", options(noreturn)) }
    })
    .wait();
    assert!(matches!(end, End::Signal(libc::SIGSEGV | libc::SIGBUS)), "{end:?}");
}

fn privileged_instructions() {
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGSEGV, || unsafe { std::arch::asm!("hlt") });
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGSEGV, || unsafe { std::arch::asm!("cli") });
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGSEGV, || unsafe { std::arch::asm!("mov {0}, cr0", out(reg) _) });
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGSEGV, || unsafe { std::arch::asm!("mov cr3, {0}", in(reg) 0u64) });
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGSEGV, || unsafe {
        std::arch::asm!("rdmsr", in("ecx") 0xc000_0080u32, out("eax") _, out("edx") _)
    });
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGSEGV, || unsafe {
        std::arch::asm!("wrmsr", in("ecx") 0xc000_0082u32, in("eax") 0, in("edx") 0)
    });
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGSEGV, || unsafe { std::arch::asm!("out 0x64, al", in("al") 0xfeu8) });
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGSEGV, || unsafe { std::arch::asm!("lgdt [{0}]", in(reg) &0u128) });
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGSEGV, || unsafe { std::arch::asm!("ltr {0:x}", in(reg) 0x40u16) });
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGSEGV, || unsafe { std::arch::asm!("invlpg [{0}]", in(reg) &0u8) });
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGSEGV, || unsafe { std::arch::asm!("swapgs") });
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGSEGV, || unsafe { std::arch::asm!("int 0x20") });
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGSEGV, || unsafe { std::arch::asm!("mov ds, {0:x}", in(reg) 0x18u16) });
}

fn bad_instructions() {
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGILL, || unsafe { std::arch::asm!("ud2") });
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGTRAP, || unsafe { std::arch::asm!("int3") });
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGFPE, || unsafe {
        std::arch::asm!("xor edx, edx", "xor ecx, ecx", "div ecx", out("eax") _, out("ecx") _, out("edx") _);
    });
}

fn not_canonical() {
    for address in [0x8000_0000_0000_0000usize, 0x0000_8000_0000_0000, 0xffff_7fff_ffff_ffff] {
        // SAFETY: it faults on purpose, in a child.
        dies_of(libc::SIGSEGV, || unsafe { _ = (address as *const u8).read_volatile() });
        // SAFETY: it faults on purpose, in a child.
        dies_of(libc::SIGSEGV, || unsafe { std::arch::asm!("jmp {0}", in(reg) address) });
        // SAFETY: it faults on purpose, in a child.
        let end = child::fork(|| unsafe {
            std::arch::asm!("mov rsp, {0}", "push rax", in(reg) address, options(noreturn))
        });
        let end = end.wait();
        assert!(matches!(end, End::Signal(libc::SIGSEGV | libc::SIGBUS)), "{end:?}");
    }
}

fn kernel_addresses() {
    for address in [0xffff_8000_0000_0000usize, 0xffff_ffff_8000_0000, 0xffff_ffff_ffff_fff8] {
        // SAFETY: it faults on purpose, in a child.
        dies_of(libc::SIGSEGV, || unsafe { _ = (address as *const u8).read_volatile() });
        // SAFETY: it faults on purpose, in a child.
        dies_of(libc::SIGSEGV, || unsafe { (address as *mut u8).write_volatile(1) });
    }
}

/// A frame on a stack of its own with the segments and flags given, handed to rt_sigreturn.
fn return_from_forged_frame(change: impl FnOnce(&mut libc::ucontext_t)) {
    // SAFETY: getcontext makes a context of this place; the changed one is the kernel's to judge.
    unsafe {
        let stack = Map::anonymous(64 << 10);
        let context = (stack.address + 32768) as *mut libc::ucontext_t;
        libc::getcontext(context);
        let registers = &mut (*context).uc_mcontext;
        registers.fpregs = std::ptr::null_mut();
        registers.gregs[libc::REG_CSGSFS as usize] = 0x2b_0000_0000_0033;
        registers.gregs[libc::REG_RIP as usize] = landing as *const () as i64;
        registers.gregs[libc::REG_RSP as usize] = (stack.address + 16384 - 8) as i64;
        registers.gregs[libc::REG_EFL as usize] = 0x202;
        change(&mut *context);
        std::arch::asm!(
            "mov rsp, {0}", "mov eax, 15", "syscall", "ud2", in(reg) context, options(noreturn)
        );
    }
}

extern "C" fn landing() -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(33) }
}

fn forged_frames() {
    let run = |change: fn(&mut libc::ucontext_t)| child::fork(|| return_from_forged_frame(change)).wait();
    assert_eq!(run(|_| {}), End::Code(33));
    let hostile: [fn(&mut libc::ucontext_t); 8] = [
        // The kernel's segments must not come out of a frame.
        |context| context.uc_mcontext.gregs[libc::REG_CSGSFS as usize] = 0x18_0000_0000_0010,
        |context| context.uc_mcontext.gregs[libc::REG_CSGSFS as usize] = 0,
        |context| context.uc_mcontext.gregs[libc::REG_CSGSFS as usize] = 0x2b_0000_0000_ffff,
        // Nor its addresses, nor such as are no addresses.
        |context| context.uc_mcontext.gregs[libc::REG_RIP as usize] = i64::MIN,
        |context| context.uc_mcontext.gregs[libc::REG_RIP as usize] = -0x8000_0000,
        |context| context.uc_mcontext.gregs[libc::REG_RIP as usize] = 0x0000_7fff_ffff_ffff,
        |context| context.uc_mcontext.fpregs = 0x1000_0000 as *mut _,
        |context| context.uc_mcontext.fpregs = 0xffff_8000_0000_0000u64 as *mut _,
    ];
    for (number, change) in hostile.into_iter().enumerate() {
        let end = run(change);
        let fits =
            matches!(end, End::Signal(libc::SIGSEGV | libc::SIGBUS | libc::SIGILL)) || end == End::Code(33);
        assert!(fits, "frame {number}: {end:?}");
    }
    // Flags that are not the user's: IOPL, NT, VM, interrupts off. The process goes on without them.
    let flags =
        |context: &mut libc::ucontext_t| context.uc_mcontext.gregs[libc::REG_EFL as usize] = 0x27_7002;
    let end = run(flags);
    assert!(matches!(end, End::Code(33) | End::Signal(_)), "{end:?}");
    // No frame at all.
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGSEGV, || unsafe {
        std::arch::asm!("xor esp, esp", "mov eax, 15", "syscall", options(noreturn))
    });
}

fn wild_thread_pointer() {
    let end = child::fork(|| {
        // SAFETY: the next access to a thread's variable faults.
        unsafe {
            libc::syscall(libc::SYS_arch_prctl, 0x1002, 0x1000_0000usize);
            libc::syscall(libc::SYS_write, 1, 0, 0);
            *libc::__errno_location() = 1;
        }
    })
    .wait();
    assert_eq!(end, End::Signal(libc::SIGSEGV));
    // SAFETY: it is refused.
    let result = unsafe { sys::raw(libc::SYS_arch_prctl, [0x1002, 0xffff_8000_0000_0000, 0, 0, 0, 0]) };
    assert_eq!(result, Err(Errno::EPERM));
}

fn wild_stack_pointer_in_a_call() {
    // A system call needs no stack of the user's.
    for stack in BAD {
        child::in_child(|| {
            let result: i64;
            // SAFETY: the stack pointer is put back before anything uses it.
            unsafe {
                std::arch::asm!(
                    "mov {keep}, rsp", "mov rsp, {stack}", "syscall", "mov rsp, {keep}",
                    keep = out(reg) _, stack = in(reg) stack, inlateout("rax") libc::SYS_getpid => result,
                    out("rcx") _, out("r11") _,
                );
            }
            assert_eq!(result, i64::from(sys::pid()));
        });
    }
}

fn running_out_of_descriptors() {
    let before = Baseline::take();
    child::in_child(|| {
        let mut ends = Vec::new();
        let error = loop {
            let mut pair = [0; 2];
            // SAFETY: room for two descriptors.
            match sys::check(unsafe { libc::pipe(pair.as_mut_ptr()) }) {
                Ok(_) => ends.extend(pair.map(|fd| Fd::own(fd as usize))),
                Err(error) => break error,
            }
        };
        assert_eq!(error, Errno::EMFILE);
        assert!(ends.len() > 100);
        // There may be room for one, but not for two.
        let last = Fd::open("/dev/null", libc::O_RDONLY);
        let error = if last.is_ok() {
            Fd::open("/dev/null", libc::O_RDONLY).err()
        } else {
            last.as_ref().err().copied()
        };
        assert_eq!(error, Some(Errno::EMFILE));
        assert_eq!(Fd::memfd("x", 0).err(), Some(Errno::EMFILE));
        ends.truncate(4);
        Fd::memfd("x", 0).unwrap();
    });
    before.check();
}

fn running_out_of_address_space() {
    child::in_child(|| {
        let flags = PRIVATE | ANON | libc::MAP_NORESERVE;
        let mut size = 1usize << 46;
        let mut maps = Vec::new();
        while size >= 1 << 30 {
            match Map::new(size, RW, flags, -1, 0) {
                Ok(map) => maps.push(map),
                Err(error) => {
                    assert_eq!(error, Errno::ENOMEM);
                    size /= 2;
                }
            }
        }
        assert!(maps.len() > 1);
        assert_eq!(Map::new(usize::MAX - 4096, RW, flags, -1, 0).err(), Some(Errno::ENOMEM));
        assert_eq!(Map::new(0, RW, flags, -1, 0).err(), Some(Errno::EINVAL));
    });
}

fn many_mappings() {
    let before = Baseline::take();
    child::in_child(|| {
        let pages = 20_000;
        let place = Map::new(pages * 4096, RW, PRIVATE | ANON | libc::MAP_NORESERVE, -1, 0).unwrap();
        for page in (0..pages).step_by(2) {
            mprotect(place.address + page * 4096, 4096, R).unwrap();
        }
        place.set(4096 * 9_999, 1);
        child::in_child(|| assert_eq!(place.get(4096 * 9_999), 1));
    });
    before.check();
}

fn trap_flag() {
    dies_of(libc::SIGTRAP, || {
        // SAFETY: sets the trap flag, so that the next instruction traps.
        unsafe { std::arch::asm!("pushfq", "or dword ptr [rsp], 0x100", "popfq", "nop", "nop") };
    });
    // Set right before a system call, it must not trap in the kernel.
    dies_of(libc::SIGTRAP, || {
        // SAFETY: as above.
        unsafe {
            std::arch::asm!(
                "pushfq", "or dword ptr [rsp], 0x100", "popfq", "syscall", "nop",
                inlateout("rax") libc::SYS_getpid => _, out("rcx") _, out("r11") _,
            );
        }
    });
}

fn alignment_check() {
    child::in_child(|| {
        let result: i64;
        // SAFETY: sets the alignment and direction flags around a system call, and puts them back.
        unsafe {
            std::arch::asm!(
                "pushfq", "or dword ptr [rsp], 0x40400", "popfq", "syscall",
                "pushfq", "and dword ptr [rsp], ~0x40400", "popfq",
                inlateout("rax") libc::SYS_getppid => result, out("rcx") _, out("r11") _,
            );
        }
        // SAFETY: takes nothing.
        assert_eq!(result, i64::from(unsafe { libc::getppid() }));
    });
}

fn unmapped_under_own_feet() {
    // All of the user's half, its own code among it.
    // SAFETY: it faults on purpose, in a child.
    dies_of(libc::SIGSEGV, || unsafe {
        // SAFETY: the end of this process.
        std::arch::asm!(
            "syscall", in("rax") libc::SYS_munmap, in("rdi") 0, in("rsi") 0x7fff_ffff_f000u64, out("rcx") _, out("r11") _
        );
    });
}

extern "C" fn again(_: i32) {
    // SAFETY: faults on purpose, in the handler of that fault.
    unsafe { (8 as *const u8).read_volatile() };
}

fn deep_recursion_of_signals() {
    let end = child::fork(|| {
        // SAFETY: a handler that nests until the stack ends.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = again as *const () as usize;
            action.sa_flags = libc::SA_NODEFER;
            libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
        }
        again(0);
    })
    .wait();
    assert_eq!(end, End::Signal(libc::SIGSEGV));
}

fn old_call_gates() {
    // 32-bit calls may be there (Linux) or not; they must not harm.
    let end = child::fork_code(|| {
        // SAFETY: getpid of the 32-bit table, or a fault.
        unsafe {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            std::arch::asm!("int 0x80", inlateout("rax") 20i64 => _, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        0
    })
    .wait();
    assert!(matches!(end, End::Code(0) | End::Signal(libc::SIGSEGV)), "{end:?}");
}
