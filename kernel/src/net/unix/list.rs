//! All sockets of a namespace, for `/proc/net/unix`.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use core::fmt::Write;
use core::sync::atomic::Ordering;

use super::address::Address;
use super::{Role, Socket};
use crate::errno::Result;
use crate::fs::proc::register;
use crate::memory::fallible::Text;
use crate::memory::reserve;
use crate::namespaces::Network;
use crate::sched;

/// By their addresses.
pub type List = BTreeMap<usize, Weak<Socket>>;

/// An entry, with its part of a node.
const ENTRY: usize = 64;

/// Puts a new one on its namespace's list.
pub(super) fn add(socket: &Arc<Socket>) -> Result<()> {
    reserve::ask(ENTRY)?;
    socket.network.unix.lock().insert(Arc::as_ptr(socket).addr(), Arc::downgrade(socket));
    Ok(())
}

impl Drop for Socket {
    fn drop(&mut self) {
        let entry = self.network.unix.lock().remove(&core::ptr::from_ref(self).addr());
        // Its memory goes with this, and does so without the lock.
        drop(entry);
    }
}

/// Registers the file.
pub fn init() -> Result<()> {
    register("net/unix", 0o444, show)
}

fn show() -> Result<String> {
    const BATCH: usize = 64;
    let network = Network::current();
    let mut out = Text::new();
    out.push_str("Num       RefCount Protocol Flags    Type St Inode Path\n");
    let mut next = 0;
    loop {
        let mut found: [Option<Arc<Socket>>; BATCH] = [const { None }; BATCH];
        let mut count = 0;
        for (address, socket) in network.unix.lock().range(next..).take(BATCH) {
            next = address + 1;
            found[count] = socket.upgrade();
            count += 1;
        }
        for socket in found.iter().flatten() {
            line(&mut out, socket);
        }
        if count < BATCH {
            return out.into_string();
        }
        sched::cond_resched();
    }
}

fn line(out: &mut Text, socket: &Socket) {
    const LISTENS: u32 = 1 << 16;
    const UNCONNECTED: u32 = 1;
    const CONNECTING: u32 = 2;
    const CONNECTED: u32 = 3;
    const DISCONNECTING: u32 = 4;
    let (references, flags, state, address) = {
        let state = socket.state.lock();
        let (references, flags, number) = match state.role {
            Role::Fresh => (2, 0, UNCONNECTED),
            Role::Listening { .. } => (2, LISTENS, UNCONNECTED),
            Role::Connected(_) | Role::Orphaned => (3, 0, CONNECTED),
        };
        (references, flags, number, state.address.clone())
    };
    // Relaxed: for people to read.
    let inode = socket.inode.load(Ordering::Relaxed);
    // Nobody has accepted it yet.
    let state = match state {
        _ if inode != 0 => state,
        CONNECTED => CONNECTING,
        _ => DISCONNECTING,
    };
    // Writing to a text does not fail before its end. Where the kernel has it is nobody's business.
    let _ = write!(
        out,
        "{:016x}: {references:08X} {:08X} {flags:08X} {:04X} {state:02X} {inode:5}",
        0,
        0,
        socket.kind.number(),
    );
    let (first, name) = match &address {
        None => ("", &[][..]),
        Some(Address::Path(path)) => (" ", &path[..]),
        Some(Address::Abstract(name)) => (" @", &name[..]),
    };
    out.push_str(first);
    for chunk in name.utf8_chunks() {
        chunk.valid().chars().for_each(|c| out.push(if c == '\0' { '@' } else { c }));
        if !chunk.invalid().is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
    out.push('\n');
}
