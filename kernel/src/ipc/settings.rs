//! The limits of System V IPC as `/proc/sys/kernel` has them, and the lists in `/proc/sysvipc`.

use alloc::string::{String, ToString};
use core::sync::atomic::{AtomicUsize, Ordering};

use super::ids::{Ids, Object, SLOTS};
use super::{mqueue, msg, sem};
use crate::errno::{Errno, Result};
use crate::fs::proc::sysctl::{self, parse_numbers};
use crate::mm::shm;
use crate::namespaces::IpcNamespace;
use crate::namespaces::ipc::here;

/// Makes settings and lists known, once procfs is up.
pub fn register() -> Result<()> {
    mqueue::register()?;
    mqueue::register_settings()?;
    crate::fs::proc::register("sysvipc/shm", 0o444, shm::list)?;
    crate::fs::proc::register("sysvipc/sem", 0o444, sem::list)?;
    crate::fs::proc::register("sysvipc/msg", 0o444, msg::list)?;
    sysctl::register("kernel/sem", show_semaphores, set_semaphores)?;
    number("kernel/msgmax", &msg::SETTINGS.largest_message, i32::MAX as usize)?;
    number("kernel/msgmnb", &msg::SETTINGS.bytes_in_queue, i32::MAX as usize)?;
    number("kernel/msgmni", &msg::SETTINGS.queues, SLOTS)?;
    wish("kernel/sem_next_id", |here| &here.sets)?;
    wish("kernel/msg_next_id", |here| &here.queues)?;
    wish("kernel/shm_next_id", |here| &here.segments)?;
    sysctl::register(
        "kernel/shm_rmid_forced",
        || Ok(u32::from(here().removes_orphans()).to_string()),
        |new| match sysctl::parse(new)? {
            value @ 0..=1u32 => {
                here().set_removes_orphans(value == 1);
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        },
    )
}

fn number(path: &str, value: &'static AtomicUsize, most: usize) -> Result<()> {
    // Relaxed, both: settings of their own.
    let read = || Ok(value.load(Ordering::Relaxed).to_string());
    sysctl::register(path, read, move |new| {
        let new = sysctl::parse(new)?;
        if new > most {
            return Err(Errno::EINVAL);
        }
        value.store(new, Ordering::Relaxed);
        Ok(())
    })
}

/// The identifier of the next object in the reader's namespace.
fn wish<T: Object + 'static>(path: &str, ids: fn(&IpcNamespace) -> &Ids<T>) -> Result<()> {
    sysctl::register(
        path,
        move || Ok(ids(&here()).wanted().to_string()),
        move |new| match new {
            "-1" => ids(&here()).set_wanted(-1),
            new => ids(&here()).set_wanted(sysctl::parse(new)?),
        },
    )
}

fn show_semaphores() -> Result<String> {
    let settings = &sem::SETTINGS;
    // Relaxed, as all of these: settings of their own.
    Ok(alloc::format!(
        "{}\t{}\t{}\t{}",
        settings.in_set.load(Ordering::Relaxed),
        settings.in_system.load(Ordering::Relaxed),
        settings.operations.load(Ordering::Relaxed),
        settings.sets.load(Ordering::Relaxed)
    ))
}

/// As many of the four numbers as are given.
fn set_semaphores(new: &str) -> Result<()> {
    let settings = &sem::SETTINGS;
    for (index, number) in parse_numbers::<u32>(new).enumerate() {
        let number = number?;
        if number > i32::MAX as u32 {
            return Err(Errno::EINVAL);
        }
        match index {
            // A semaphore's number has 16 bits.
            0 if number > 1 << 16 => return Err(Errno::ERANGE),
            0 => settings.in_set.store(number, Ordering::Relaxed),
            1 => settings.in_system.store(number, Ordering::Relaxed),
            2 => settings.operations.store(number, Ordering::Relaxed),
            3 if number as usize > SLOTS => return Err(Errno::ERANGE),
            3 => settings.sets.store(number as usize, Ordering::Relaxed),
            _ => break,
        }
    }
    Ok(())
}
