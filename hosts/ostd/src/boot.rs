//! What OSTD asks of each kernel: allocators and a panic handler. They are those that its own tools generate.

use core::alloc::Layout;
use core::panic::PanicInfo;

use osdk_frame_allocator::FrameAllocator;
use osdk_heap_allocator::{HeapAllocator, type_from_layout};
use ostd::mm::heap::SlotInfo;
use spin::Mutex;

#[ostd::global_frame_allocator]
static FRAME_ALLOCATOR: FrameAllocator = FrameAllocator;

#[ostd::global_heap_allocator]
static HEAP_ALLOCATOR: HeapAllocator = HeapAllocator;

#[ostd::global_heap_allocator_slot_map]
const fn slot_type(layout: Layout) -> Option<SlotInfo> {
    type_from_layout(layout)
}

/// The case that runs, if any, for who reads of a panic.
pub static CASE: Mutex<&str> = Mutex::new("");

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("panic: {} {}", CASE.try_lock().as_deref().unwrap_or(&""), info);
    ostd::power::poweroff(ostd::power::ExitCode::Failure)
}
