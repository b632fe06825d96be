//! What a terminal asks of its device.

/// The device behind a terminal: a serial port, or the other end of a pseudoterminal. No method sleeps.
pub trait Driver: Send + Sync {
    /// Takes processed output; returns how much of it there was room for.
    fn write(&self, bytes: &[u8]) -> usize;
    /// How many bytes `write` takes now.
    fn room(&self) -> usize;
    /// Output that has not left yet, in bytes.
    fn pending(&self) -> usize;
    /// Forgets output that has not left yet.
    fn flush_output(&self);
    /// Stops output, or goes on.
    fn set_stopped(&self, stopped: bool);
    /// Sends a character before all others (TCIOFF, TCION).
    fn send_urgent(&self, byte: u8) {
        self.write(&[byte]);
    }
    /// There is room for input again.
    fn input_taken(&self) {}
    /// The other end is closed: reads fail with `EIO`, once what was sent is read.
    fn other_end_closed(&self) -> bool {
        false
    }
    /// The last open file of the terminal is gone.
    fn all_closed(&self) {}
    /// A pseudoterminal is not hung up when its session's leader ends.
    fn is_pseudoterminal(&self) -> bool {
        false
    }
}
