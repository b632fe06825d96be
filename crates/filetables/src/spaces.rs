//! The address spaces that are attached to a file's tables, and their flush.

use crate::error::OutOfMemory;
use crate::frame::Frame;
use crate::machine::Machine;
use crate::memory::Leaf;
use crate::mutant::Mutant;
use crate::stripe::STRIPES;
use crate::tables::FileTables;

impl<M: Machine, P: Frame + Clone> FileTables<M, P> {
    /// Makes all CPUs that run a space with attached tables of the file forget what they know of it.
    ///
    /// The entries were cleared before. A space that attaches later joins first, and finds them clear.
    pub fn flush(&self) {
        self.machine.flush_spaces(&|space| self.has_joined(space));
    }

    /// A mapping of the address space is about to attach to a table for the first time.
    ///
    /// The space is known before the hardware can walk into the table: a removal that comes later flushes it, one that came
    /// earlier left the entries clear.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when there is no memory to note it.
    pub fn join(&self, space: u64) -> Result<(), OutOfMemory> {
        let lock = &self.stripes()?[space as usize % STRIPES];
        if Mutant::SpaceNotJoined.is_on() {
            return Ok(());
        }
        let mut spare = None;
        loop {
            let mut stripe = lock.lock();
            if let Some(mappings) = stripe.spaces.get_mut(&space) {
                *mappings += 1;
                // The lock first, then the memory.
                drop(stripe);
                drop(spare);
                return Ok(());
            }
            if let Some(entry) = spare.take() {
                // It is not there: see above.
                let _ = stripe.spaces.insert_entry(entry);
                return Ok(());
            }
            drop(stripe);
            spare = Some(Leaf::try_new(space, 1)?);
        }
    }

    /// A mapping that joined is gone: none of its entries leads to a table, and the TLBs were flushed.
    pub fn leave(&self, space: u64) {
        let Some(stripes) = self.stripes.get() else { return };
        let mut stripe = stripes[space as usize % STRIPES].lock();
        let Some(mappings) = stripe.spaces.get_mut(&space) else { return };
        *mappings -= 1;
        let gone = if *mappings == 0 { stripe.spaces.remove_entry(&space) } else { None };
        // The lock first, then the memory.
        drop(stripe);
        drop(gone);
    }

    /// Whether CPUs that run the address space may hold translations of any of the tables.
    pub fn has_joined(&self, space: u64) -> bool {
        self.stripes
            .get()
            .is_some_and(|stripes| stripes[space as usize % STRIPES].lock().spaces.get(&space).is_some())
    }
}
