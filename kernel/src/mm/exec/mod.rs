//! Loading of programs: ELF files, static, position-independent or with an interpreter, and `#!` scripts.
//!
//! Nothing is read ahead: segments are mapped from the page cache, and the program faults them in. The new address space is built
//! beside the old one, so that an error leaves the caller as it was.

mod binary;
mod open;
mod origins;
mod script;
mod stack;
mod strings;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use self::binary::Binary;
pub use self::open::{Executable, open_place, open_program};
use self::origins::Origins;
pub use self::origins::init;
pub use self::strings::StringList;
use super::vma::{Kind, VmFlags, Vma};
use super::{AddressSpace, PAGE, limit, vdso};
use crate::errno::{Errno, Result};
use crate::fs::File;
use crate::memory::fallible;
use crate::process::{self, Charge};

/// Longest argument or environment string, with its end.
pub const MAX_STRING: usize = 32 * PAGE as usize;
/// `#!` in `#!` in ... this deep.
const MAX_SCRIPTS: usize = 5;
/// personality(2): no random addresses.
const ADDR_NO_RANDOMIZE: u32 = 0x004_0000;

/// `kernel.randomize_va_space`: 0 none, 1 all but the heap, 2 all.
static RANDOMIZE: AtomicU32 = AtomicU32::new(2);

/// `kernel.randomize_va_space`.
pub fn randomize_va_space() -> u32 {
    // Relaxed: a setting of its own.
    RANDOMIZE.load(Ordering::Relaxed)
}

/// Sets `kernel.randomize_va_space`.
pub fn set_randomize_va_space(value: u32) {
    RANDOMIZE.store(value, Ordering::Relaxed);
}

/// Who the program will run as: what its auxiliary vector says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity {
    pub uid: u32,
    pub euid: u32,
    pub gid: u32,
    pub egid: u32,
    /// It gains rights by running: the C library is to be careful.
    pub secure: bool,
}

/// What execve(2) was asked for.
pub struct Request<'a> {
    /// The file, from [`open_program`].
    pub file: Arc<File>,
    /// As the caller named it: `AT_EXECFN`, and what a script's interpreter is given.
    pub name: &'a [u8],
    pub arguments: StringList,
    pub environment: StringList,
    /// Says who will run the program that was found in the end, an interpreter in place of a script.
    pub identity: &'a dyn Fn(&Arc<File>) -> Identity,
}

/// A program that is ready to run.
pub struct Image {
    pub space: Arc<AddressSpace>,
    /// For what is in memory of it: nobody finds it by the process until it is in place.
    pub charge: Charge,
    /// Where user mode starts: the program's entry, or its interpreter's.
    pub entry: u64,
    /// The first stack pointer.
    pub stack: u64,
    /// Who runs it may read the program and its interpreter. Else it must not be read out of memory either.
    pub readable: bool,
}

/// Bytes that arguments and environment may have, with their pointers.
fn argument_limit() -> u64 {
    const ARG_MAX: u64 = 131_072;
    const DEFAULT_STACK: u64 = 8 << 20;
    (limit(linux_raw_sys::general::RLIMIT_STACK) / 4).clamp(ARG_MAX, DEFAULT_STACK / 4 * 3)
}

fn check_strings(request: &Request) -> Result<()> {
    let mut bytes = request.name.len() as u64 + 1;
    for string in request.arguments.iter().chain(request.environment.iter()) {
        if string.len() + 1 > MAX_STRING {
            return Err(Errno::E2BIG);
        }
        bytes += string.len() as u64 + 1 + 8;
    }
    if bytes > argument_limit() { Err(Errno::E2BIG) } else { Ok(()) }
}

/// Builds the address space of a program.
pub fn load(mut request: Request) -> Result<Image> {
    // Linux gives a program without arguments an empty one.
    if request.arguments.len() == 0 {
        request.arguments.push(Vec::new())?;
    }
    let mut script_name = fallible::copy_of(request.name)?;
    let mut depth = 0;
    let executable = loop {
        check_strings(&request)?;
        let executable = Executable::new(request.file.clone())?;
        let mut head = [0; script::HEAD];
        let len = request.file.read_kernel(0, &mut head)?;
        let Some(line) = script::parse(&head[..len], len < head.len())? else { break executable };
        depth += 1;
        if depth > MAX_SCRIPTS {
            return Err(Errno::ELOOP);
        }
        // INTERPRETER [ARGUMENT] SCRIPT, then the arguments but for the name that the caller made up.
        let mut first = fallible::with_capacity(3)?;
        first.push(line.interpreter.to_vec());
        first.extend(line.argument.map(<[u8]>::to_vec));
        first.push(core::mem::replace(&mut script_name, line.interpreter.to_vec()));
        request.arguments.replace_first(first)?;
        request.file = open_program(line.interpreter)?;
    };
    let binary = Binary::read(&request.file, Errno::ENOEXEC)?;
    let interpreter = match binary.interpreter(&request.file)? {
        Some(path) => {
            let file = open_program(&path)?;
            let binary = Binary::read(&file, Errno::ELIBBAD)?;
            Some((file, binary))
        }
        None => None,
    };
    let personality = process::current().process.personality.load(Ordering::SeqCst);
    let randomise = randomize_va_space() > 0 && personality & ADDR_NO_RANDOMIZE == 0;
    let origins = Origins::new(randomise);
    let space = AddressSpace::new()?;
    {
        let layout = &mut space.write().layout;
        layout.mmap_base = origins.mmap_base;
        layout.stack_room = origins.stack_room.clone();
    }
    let program = binary.map(&space, &request.file, Some(&origins))?;
    let loader = match &interpreter {
        Some((file, binary)) => Some(binary.map(&space, file, None)?),
        None => None,
    };
    let vdso = map_vdso(&space)?;
    {
        let mut areas = space.write();
        let layout = &mut areas.layout;
        layout.code = program.code.clone();
        layout.data = program.data.clone();
        let end = super::page_up(program.end).ok_or(Errno::ENOMEM)?;
        layout.brk_start =
            if randomize_va_space() < 2 { end } else { origins.heap(end, binary.movable_shape().as_ref()) };
        layout.brk = layout.brk_start;
        layout.vdso = vdso;
        layout.executable = Some(executable.clone());
    }
    let facts = stack::Facts {
        identity: (request.identity)(&request.file),
        program: &program,
        header_count: binary.header_count(),
        interpreter_base: loader.as_ref().map_or(0, |loader| loader.bias),
        vdso,
        executable_stack: binary.executable_stack(),
        top: origins.stack_top,
    };
    let stack = stack::build(&space, &request, &facts)?;
    let bytes = space.resident_now().total() * PAGE + space.table_bytes();
    let charge = process::current().process.charges.add(bytes as usize);
    let readable =
        open::may_read(&request.file) && interpreter.as_ref().is_none_or(|(file, _)| open::may_read(file));
    let entry = loader.as_ref().map_or(program.entry, |loader| loader.entry);
    Ok(Image { entry, stack, space, charge, readable })
}

/// Maps the vDSO and its data; returns where the code is. Nobody may store there: its page is the kernel's, and no copies are made of it.
fn map_vdso(space: &AddressSpace) -> Result<u64> {
    const READ: VmFlags = VmFlags::READ.union(VmFlags::MAY_READ);
    const CODE: VmFlags = READ.union(VmFlags::EXEC).union(VmFlags::MAY_EXEC).union(VmFlags::DONT_EXPAND);
    const DATA: VmFlags = READ.union(VmFlags::DONT_EXPAND).union(VmFlags::DONT_DUMP);
    let mut areas = space.write();
    let at = super::layout::choose(&mut areas, 0, &super::layout::Placement::pages(vdso::LEN))?;
    for (start, pages, flags) in [(at, &vdso::DATA, DATA), (at + PAGE, &vdso::IMAGE, CODE)] {
        areas.set.insert(Vma {
            kind: Kind::Special(pages),
            first: 0,
            ..Vma::anonymous(start..start + PAGE, flags)
        });
    }
    Ok(at + PAGE)
}
