//! statmount(2) and listmount(2): what is mounted, by numbers.

use linux_raw_sys::general as abi;
use syscalls::Sysno;

use super::{Args, Handler};
use crate::errno::{Errno, Result};
use crate::fs::caller::context;
use crate::fs::mount::listed::{self, View};
use crate::memory::PAGE_SIZE;
use crate::mm::uaccess::{check_range, copy_from_user, copy_to_user, read_user, write_user};

pub const TABLE: &[(Sysno, Handler)] = &[(Sysno::statmount, statmount), (Sysno::listmount, listmount)];

/// In the place of a mount's number: all of the namespace.
const ROOT: u64 = u64::MAX;
/// Bytes of `struct statmount` without its texts.
const BYTES: usize = 512;

/// The request: the mount's number, a parameter, and the namespace's number.
fn request(address: usize) -> Result<[u64; 3]> {
    const FIRST_VERSION: usize = 24;
    const KNOWN: usize = 32;
    let size = read_user::<u32>(address)? as usize;
    if size < FIRST_VERSION {
        return Err(Errno::EINVAL);
    }
    if size > PAGE_SIZE {
        return Err(Errno::E2BIG);
    }
    for at in KNOWN..size {
        if read_user::<u8>(address.wrapping_add(at))? != 0 {
            return Err(Errno::E2BIG);
        }
    }
    // What a shorter one does not have is zero.
    let mut bytes = [0; KNOWN];
    copy_from_user(&mut bytes[..size.min(KNOWN)], address)?;
    let [sizes, id, parameter, namespace] =
        [0, 1, 2, 3].map(|at| u64::from_ne_bytes(bytes.as_chunks().0[at]));
    // The upper half of the first is to be zero.
    if sizes >> 32 == 0 { Ok([id, parameter, namespace]) } else { Err(Errno::EINVAL) }
}

fn statmount(args: &mut Args) -> Result<usize> {
    const TEXTS: [u32; 4] =
        [abi::STATMOUNT_FS_TYPE, abi::STATMOUNT_MNT_ROOT, abi::STATMOUNT_MNT_POINT, abi::STATMOUNT_MNT_OPTS];
    let [address, out, room, flags, ..] = args.a;
    if flags as u32 != 0 {
        return Err(Errno::EINVAL);
    }
    let [id, asked, namespace] = request(address)?;
    let id = listed::number(id)?;
    let view = View::new(namespace, context().root(), Errno::EPERM)?;
    check_range(out, room)?;
    let wants = |what: u32| asked & u64::from(what) != 0;
    if room == BYTES && TEXTS.into_iter().any(wants) {
        return Err(Errno::EOVERFLOW);
    }
    let mut told = view.tell(id, asked)?;
    // The texts lie behind the numbers, each with a zero at its end: first an empty one, which stands for those that are not asked for.
    let mut behind = usize::from(TEXTS.into_iter().any(wants));
    let mut starts = [0; 4];
    let asked = |index: &usize| wants(TEXTS[*index]);
    for index in (0..TEXTS.len()).filter(asked) {
        let text = &told.texts[index];
        starts[index] = behind as u32;
        behind += text.len();
        if BYTES + behind >= room {
            return Err(Errno::EOVERFLOW);
        }
        behind += 1;
    }
    let copied = room.min(BYTES);
    [told.mount.fs_type, told.mount.mnt_root, told.mount.mnt_point, told.mount.mnt_opts] = starts;
    told.mount.size = (copied + behind) as u32;
    if behind > 0 {
        write_user(out.wrapping_add(BYTES), &0u8)?;
    }
    for index in (0..TEXTS.len()).filter(asked) {
        let text = &told.texts[index];
        let at = out.wrapping_add(BYTES + starts[index] as usize);
        copy_to_user(at, text)?;
        write_user(at.wrapping_add(text.len()), &0u8)?;
    }
    // SAFETY: the structure is numbers without holes between them, and lives through the call.
    let bytes = unsafe { core::slice::from_raw_parts((&raw const told.mount).cast::<u8>(), BYTES) };
    copy_to_user(out, &bytes[..copied])?;
    Ok(0)
}

fn listmount(args: &mut Args) -> Result<usize> {
    const REVERSE: u32 = 1;
    const MOST: usize = 1_000_000;
    let [address, out, room, flags, ..] = args.a;
    let flags = flags as u32;
    if flags & !REVERSE != 0 {
        return Err(Errno::EINVAL);
    }
    if room > MOST {
        return Err(Errno::EOVERFLOW);
    }
    check_range(out, room * size_of::<u64>())?;
    let [id, after, namespace] = request(address)?;
    let above = if id == ROOT { None } else { Some(listed::number(id)?) };
    let after = if after == 0 { 0 } else { listed::number(after)? };
    let view = View::new(namespace, context().root(), Errno::ENOENT)?;
    view.list(above, after, flags & REVERSE != 0, room, |index, id| {
        write_user(out.wrapping_add(index * size_of::<u64>()), &id)
    })
}

const _: () = assert!(size_of::<abi::statmount>() == BYTES);
