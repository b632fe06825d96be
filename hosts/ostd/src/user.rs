//! User mode: three small programs, and the system calls that they make.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use hugetlb::{FallocateMode, File, MapOptions, PhysAddr, Protection, VirtAddr};
use ostd::arch::cpu::context::UserContext;
use ostd::cpu::CpuId;
use ostd::mm::{CachePolicy, FrameAllocOptions, HasPaddr, PAGE_SIZE, PageFlags, PageProperty, UFrame};
use ostd::sync::WaitQueue;
use ostd::task::disable_preempt;
use ostd::user::{ReturnReason, UserContextApi, UserMode};

use crate::machine::Ostd;
use crate::process::Process;
use crate::sched::{OfTask, spawn};
use crate::{arch, cpus, memory};

const CODE: usize = 0x40_0000;

// The assembly of the architecture has these.
//
// load(address, pages, stride): loads a word of each page. Its status is their sum.
// hammer(address, times, value): stores a word so often.
// family(address, length): maps, stores, forks, waits, punches, unmaps. Its status is the number of the step that failed.
unsafe extern "C" {
    static user_code: u8;
    static user_code_end: u8;
    static user_load: u8;
    static user_hammer: u8;
    static user_family: u8;
}

/// A program and its arguments.
#[derive(Clone, Copy)]
pub enum Program {
    Load { address: VirtAddr, pages: u64, stride: u64 },
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
                Program::Load { address, pages, stride } => (place(&user_load), [address.0, pages, stride]),
                Program::Hammer { address, times, value } => (place(&user_hammer), [address.0, times, value]),
                Program::Family { address, length } => (place(&user_family), [address.0, length, 0]),
            }
        };
        let mut context = UserContext::default();
        context.set_instruction_pointer(entry);
        arch::set_arguments(&mut context, arguments.map(|argument| argument as usize));
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
    arch::synchronize_code();
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

/// Page faults of all programs so far.
pub static FAULTS: AtomicU64 = AtomicU64::new(0);

fn execute(process: &Arc<Process>, file: &Arc<File<Ostd>>, code: &UFrame, context: UserContext) -> i64 {
    OfTask::enter(Some(process.space().clone()));
    let mut mode = UserMode::new(context);
    let mut child = None;
    let status = loop {
        cpus::pass_quiescent_point();
        match mode.execute(|| false) {
            ReturnReason::KernelEvent => {}
            ReturnReason::UserException => {
                let fault = mode.context_mut().take_exception().and_then(arch::page_fault);
                let Some((address, access)) = fault else { break KILLED };
                FAULTS.fetch_add(1, Ordering::Relaxed);
                if process.fault(address, access).is_err() {
                    break KILLED;
                }
                arch::forget(address);
            }
            ReturnReason::UserSyscall => {
                let context = mode.context_mut();
                let (number, arguments) = arch::system_call(context);
                let result = match number {
                    0 => break arguments.0 as i64,
                    1 => process.map(file, VirtAddr(arguments.0), arguments.1, SHARED).map(|()| 0),
                    2 => process.fork().map(|forked| {
                        map_code(&forked, code);
                        let mut context = context.clone();
                        arch::set_result(&mut context, 0);
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
                        process.unmap(VirtAddr(arguments.0)..VirtAddr(arguments.0) + arguments.1).map(|()| 0)
                    }
                    _ => break KILLED,
                };
                let value = result.unwrap_or_else(|error| -i64::from(error.errno()));
                arch::set_result(context, value as usize);
            }
        }
    };
    OfTask::enter(None);
    status
}
