//! Ring 3: three small programs, and the system calls that they make.

use alloc::sync::Arc;
use core::arch::global_asm;
use core::sync::atomic::{AtomicI64, Ordering};

use hugetlb::{Access, FallocateMode, File, MapOptions, PhysAddr, Protection, VirtAddr};
use ostd::arch::cpu::context::{CpuException, PageFaultErrorCode, UserContext};
use ostd::cpu::CpuId;
use ostd::mm::{CachePolicy, FrameAllocOptions, HasPaddr, PAGE_SIZE, PageFlags, PageProperty, UFrame};
use ostd::sync::WaitQueue;
use ostd::task::disable_preempt;
use ostd::user::{ReturnReason, UserContextApi, UserMode};

use crate::machine::Ostd;
use crate::process::Process;
use crate::sched::{OfTask, spawn};
use crate::{cpus, memory};

const CODE: usize = 0x40_0000;

// touch(address, pages, stride): loads a word of each page.
// hammer(address, times, value): stores a word so often.
// family(address, length): maps, stores, forks, waits, punches, unmaps. Its status is the number of the step that failed.
global_asm!(
    ".pushsection .rodata.user, \"a\"",
    ".balign 16",
    "user_code:",
    "user_touch:",
    "1: mov rax, [rdi]",
    "   add rdi, rdx",
    "   dec rsi",
    "   jnz 1b",
    "   xor edi, edi",
    "   jmp 9f",
    "user_hammer:",
    "1: mov [rdi], rdx",
    "   dec rsi",
    "   jnz 1b",
    "   xor edi, edi",
    "   jmp 9f",
    "user_family:",
    "   mov r12, rdi",
    "   mov r13, rsi",
    "   mov r15d, 1",
    "   mov eax, 1", // map
    "   syscall",
    "   test rax, rax",
    "   jnz 8f",
    "   mov qword ptr [r12], 1",
    "   mov qword ptr [r12 + 0x200000], 2",
    "   mov r15d, 2",
    "   mov eax, 2", // fork
    "   syscall",
    "   test rax, rax",
    "   js 8f",
    "   jz 5f",
    "   mov r15d, 3",
    "   mov eax, 3", // wait
    "   syscall",
    "   test rax, rax",
    "   jnz 8f",
    "   mov r15d, 4", // the child has stored
    "   cmp qword ptr [r12 + 0x200000], 100",
    "   jne 8f",
    "   mov r15d, 5",
    "   xor edi, edi",
    "   mov esi, 0x200000",
    "   mov eax, 4", // punch
    "   syscall",
    "   test rax, rax",
    "   jnz 8f",
    "   mov r15d, 6",
    "   cmp qword ptr [r12], 0",
    "   jne 8f",
    "   mov rdi, r12",
    "   mov eax, 5", // unmap
    "   syscall",
    "   xor edi, edi",
    "   jmp 9f",
    "5: mov r15d, 7", // the child
    "   cmp qword ptr [r12], 1",
    "   jne 8f",
    "   cmp qword ptr [r12 + 0x200000], 2",
    "   jne 8f",
    "   mov qword ptr [r12 + 0x200000], 100",
    "   xor edi, edi",
    "   jmp 9f",
    "8: mov rdi, r15",
    "9: xor eax, eax", // exit
    "   syscall",
    "user_code_end:",
    ".popsection",
);

unsafe extern "C" {
    static user_code: u8;
    static user_code_end: u8;
    static user_touch: u8;
    static user_hammer: u8;
    static user_family: u8;
}

/// A program and its arguments.
#[derive(Clone, Copy)]
pub enum Program {
    Touch { address: VirtAddr, pages: u64, stride: u64 },
    Hammer { address: VirtAddr, times: u64, value: u64 },
    Family { address: VirtAddr, length: u64 },
}

const RW: Protection = Protection::READ.union(Protection::WRITE);
/// A shared mapping that promises nothing.
pub const SHARED: MapOptions = MapOptions { shared: true, no_reserve: true, protection: RW };

fn place(symbol: &'static u8) -> usize {
    CODE + (&raw const *symbol as usize - &raw const user_code as usize)
}

impl Program {
    fn context(self) -> UserContext {
        // SAFETY: The symbols are those of the assembly above.
        let (entry, arguments) = unsafe {
            match self {
                Program::Touch { address, pages, stride } => (place(&user_touch), [address.0, pages, stride]),
                Program::Hammer { address, times, value } => (place(&user_hammer), [address.0, times, value]),
                Program::Family { address, length } => (place(&user_family), [address.0, length, 0]),
            }
        };
        let mut context = UserContext::default();
        context.set_instruction_pointer(entry);
        let [rdi, rsi, rdx] = arguments.map(|argument| argument as usize);
        context.set_rdi(rdi);
        context.set_rsi(rsi);
        context.set_rdx(rdx);
        context
    }
}

/// The frame with the programs' code, which all processes map.
pub fn load() -> UFrame {
    let frame = FrameAllocOptions::new().alloc_frame().expect("memory for the code");
    let start = &raw const user_code;
    let length = &raw const user_code_end as usize - start as usize;
    assert!(length <= PAGE_SIZE);
    // SAFETY: The assembly is that long, and the frame is new.
    unsafe { memory::linear(PhysAddr(frame.paddr() as u64)).copy_from_nonoverlapping(start, length) };
    frame.into()
}

/// Lets a process see the code, by OSTD's own page tables.
pub fn map_code(process: &Process, code: &UFrame) {
    let guard = disable_preempt();
    let range = CODE..CODE + PAGE_SIZE;
    let mut cursor = process.space().vm().cursor_mut(&guard, &range).expect("nothing else is there");
    cursor.map(code.clone(), PageProperty::new_user(PageFlags::RX, CachePolicy::Writeback));
}

/// How a program ended: its status, or [`KILLED`].
pub struct Exit {
    status: AtomicI64,
    waiting: WaitQueue,
}

const RUNNING: i64 = -2;
/// The status of a program that a fault has ended.
pub const KILLED: i64 = -1;

impl Exit {
    pub fn has_ended(&self) -> bool {
        self.status.load(Ordering::Acquire) != RUNNING
    }

    pub fn wait(&self) -> i64 {
        self.waiting.wait_until(|| {
            let status = self.status.load(Ordering::Acquire);
            (status != RUNNING).then_some(status)
        })
    }
}

/// Starts a program in a process, on a CPU.
pub fn start(
    cpu: CpuId,
    process: Arc<Process>,
    file: Arc<File<Ostd>>,
    code: UFrame,
    program: Program,
) -> Arc<Exit> {
    start_at(cpu, process, file, code, program.context())
}

fn start_at(
    cpu: CpuId,
    process: Arc<Process>,
    file: Arc<File<Ostd>>,
    code: UFrame,
    context: UserContext,
) -> Arc<Exit> {
    let exit = Arc::new(Exit { status: AtomicI64::new(RUNNING), waiting: WaitQueue::new() });
    let ours = exit.clone();
    spawn(cpu, move || {
        let status = execute(&process, &file, &code, context);
        drop((process, file));
        ours.status.store(status, Ordering::Release);
        ours.waiting.wake_all();
    });
    exit
}

/// Runs a program in a process to its end, in the task of the caller.
pub fn run(process: &Arc<Process>, file: &Arc<File<Ostd>>, code: &UFrame, program: Program) -> i64 {
    execute(process, file, code, program.context())
}

fn execute(process: &Arc<Process>, file: &Arc<File<Ostd>>, code: &UFrame, context: UserContext) -> i64 {
    OfTask::enter(Some(process.space().clone()));
    let mut mode = UserMode::new(context);
    let mut child = None;
    let status = loop {
        cpus::pass_quiescent_point();
        match mode.execute(|| false) {
            ReturnReason::KernelEvent => {}
            ReturnReason::UserException => {
                let Some(CpuException::PageFault(fault)) = mode.context_mut().take_exception() else {
                    break KILLED;
                };
                let access = if fault.error_code.contains(PageFaultErrorCode::INSTRUCTION) {
                    Access::Execute
                } else if fault.error_code.contains(PageFaultErrorCode::WRITE) {
                    Access::Write
                } else {
                    Access::Read
                };
                if process.fault(VirtAddr(fault.addr as u64), access).is_err() {
                    break KILLED;
                }
            }
            ReturnReason::UserSyscall => {
                let context = mode.context_mut();
                let arguments = (context.rdi() as u64, context.rsi() as u64);
                let result = match context.rax() {
                    0 => break context.rdi() as i64,
                    1 => process.map(file, VirtAddr(arguments.0), arguments.1, SHARED).map(|()| 0),
                    2 => process.fork().map(|forked| {
                        map_code(&forked, code);
                        let mut context = context.clone();
                        context.set_rax(0);
                        // On another CPU than the parent, if there is one.
                        let cpu = ostd::cpu::all_cpus().last().unwrap_or(CpuId::bsp());
                        child = Some(start_at(cpu, forked, file.clone(), code.clone(), context));
                        1
                    }),
                    3 => Ok(child.take().map_or(KILLED, |child| child.wait())),
                    4 => file
                        .fallocate(FallocateMode::PunchHole, arguments.0, arguments.1, || false)
                        .map(|()| 0),
                    5 => {
                        process.unmap(VirtAddr(arguments.0));
                        Ok(0)
                    }
                    _ => break KILLED,
                };
                let value = result.unwrap_or_else(|error| -i64::from(error.errno()));
                context.set_rax(value as usize);
            }
        }
    };
    OfTask::enter(None);
    status
}
