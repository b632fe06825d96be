//! `/sys/devices/system/memory`: RAM in blocks that could come and go on other machines. lsmem(1) adds them up.

use alloc::format;

use super::{line, node, register, register_read_only};
use crate::boot::info;
use crate::errno::{Errno, Result};
use crate::memory;

const MEMORY: &str = "devices/system/memory";
/// Bytes of a block: what x86 has below 64 GiB, and all block numbers with it.
const BLOCK: u64 = 128 << 20;

/// Registers the files of all blocks in which RAM is.
pub(super) fn init() -> Result<()> {
    let fixed = |_: &str| Err(Errno::EINVAL);
    register_read_only(&format!("{MEMORY}/block_size_bytes"), || Ok(format!("{BLOCK:x}\n")))?;
    register(&format!("{MEMORY}/auto_online_blocks"), || line("offline"), fixed)?;
    let mut next = 0;
    for ram in info::ram() {
        let end = ram.end.div_ceil(BLOCK);
        for block in next.max(ram.start / BLOCK)..end {
            let directory = format!("{MEMORY}/memory{block}");
            register(&format!("{directory}/online"), || line(1), fixed)?;
            register(&format!("{directory}/state"), || line("online"), fixed)?;
            register_read_only(&format!("{directory}/phys_device"), || line(0))?;
            register_read_only(&format!("{directory}/phys_index"), move || Ok(format!("{block:08x}\n")))?;
            register_read_only(&format!("{directory}/removable"), || line(0))?;
            register_read_only(&format!("{directory}/valid_zones"), || line("none"))?;
            node::link_block(block, memory::node::within(block * BLOCK, (block + 1) * BLOCK))?;
        }
        next = next.max(end);
    }
    Ok(())
}
