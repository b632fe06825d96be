//! Terminal settings, in the three layouts that programs know.

use linux_raw_sys::general as abi;

/// Settings of a terminal: those of `struct termios2`, with the same values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Termios {
    /// `c_iflag`: input modes.
    pub input: u32,
    /// `c_oflag`: output modes.
    pub output: u32,
    /// `c_cflag`: modes of the line.
    pub control: u32,
    /// `c_lflag`: local modes.
    pub local: u32,
    /// The line discipline; always `N_TTY`.
    pub line: u8,
    /// The special characters, by `VINTR` and so on.
    pub chars: [u8; abi::NCCS as usize],
    /// Input speed, baud.
    pub input_speed: u32,
    /// Output speed, baud.
    pub output_speed: u32,
}

/// `struct termios` without the speeds: what TCGETS and TCSETS move.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KernelTermios {
    flags: [u32; 4],
    line: u8,
    chars: [u8; 19],
}

/// `struct termios2`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct KernelTermios2 {
    base: KernelTermios,
    input_speed: u32,
    output_speed: u32,
}

/// `struct termio` of System V: what TCGETA and TCSETA move.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SystemVTermio {
    flags: [u16; 4],
    line: u8,
    chars: [u8; 8],
    padding: u8,
}

/// The rates that have a code of their own in `CBAUD`, by code: 0 to 15, then those with `CBAUDEX`, from 1.
const SPEEDS: [u32; 16] =
    [0, 50, 75, 110, 134, 150, 200, 300, 600, 1200, 1800, 2400, 4800, 9600, 19200, 38400];
const EXTENDED_SPEEDS: [u32; 15] = [
    57600, 115200, 230400, 460800, 500000, 576000, 921600, 1000000, 1152000, 1500000, 2000000, 2500000,
    3000000, 3500000, 4000000,
];

fn speed_of(code: u32, other: u32) -> u32 {
    if code & abi::BOTHER == 0 {
        return SPEEDS[(code & 0xf) as usize];
    }
    match code & 0xf {
        0 => other,
        n => EXTENDED_SPEEDS[n as usize - 1],
    }
}

fn code_of(speed: u32) -> u32 {
    if let Some(code) = SPEEDS.iter().position(|s| *s == speed) {
        code as u32
    } else if let Some(code) = EXTENDED_SPEEDS.iter().position(|s| *s == speed) {
        abi::BOTHER | (code as u32 + 1)
    } else {
        abi::BOTHER
    }
}

impl Termios {
    /// A new terminal: line editing, echo and signals on.
    pub const fn new(speed_code: u32, speed: u32) -> Self {
        let mut chars = [0; abi::NCCS as usize];
        chars[abi::VINTR as usize] = 0o003;
        chars[abi::VQUIT as usize] = 0o034;
        chars[abi::VERASE as usize] = 0o177;
        chars[abi::VKILL as usize] = 0o025;
        chars[abi::VEOF as usize] = 0o004;
        chars[abi::VMIN as usize] = 1;
        chars[abi::VSTART as usize] = 0o021;
        chars[abi::VSTOP as usize] = 0o023;
        chars[abi::VSUSP as usize] = 0o032;
        chars[abi::VREPRINT as usize] = 0o022;
        chars[abi::VDISCARD as usize] = 0o017;
        chars[abi::VWERASE as usize] = 0o027;
        chars[abi::VLNEXT as usize] = 0o026;
        Self {
            input: abi::ICRNL | abi::IXON,
            output: abi::OPOST | abi::ONLCR,
            control: speed_code | abi::CS8 | abi::CREAD | abi::HUPCL,
            local: abi::ISIG
                | abi::ICANON
                | abi::ECHO
                | abi::ECHOE
                | abi::ECHOK
                | abi::ECHOCTL
                | abi::ECHOKE
                | abi::IEXTEN,
            line: 0,
            chars,
            input_speed: speed,
            output_speed: speed,
        }
    }

    /// The special character of that index; 0 is none.
    pub fn char(&self, index: u32) -> u8 {
        self.chars[index as usize]
    }

    /// Is `byte` the special character of that index? One that is 0 is switched off.
    pub fn is_char(&self, byte: u8, index: u32) -> bool {
        byte != 0 && self.char(index) == byte
    }

    /// Is any of these local modes on?
    pub fn local(&self, flags: u32) -> bool {
        self.local & flags != 0
    }

    /// Is any of these input modes on?
    pub fn input(&self, flags: u32) -> bool {
        self.input & flags != 0
    }

    /// Is any of these output modes on?
    pub fn output(&self, flags: u32) -> bool {
        self.output & flags != 0
    }

    /// For TCGETS.
    pub fn to_kernel(self) -> KernelTermios {
        KernelTermios {
            flags: [self.input, self.output, self.control, self.local],
            line: self.line,
            chars: self.chars,
        }
    }

    /// For TCGETS2.
    pub fn to_kernel2(self) -> KernelTermios2 {
        KernelTermios2 {
            base: self.to_kernel(),
            input_speed: self.input_speed,
            output_speed: self.output_speed,
        }
    }

    /// For TCGETA.
    pub fn to_system_v(self) -> SystemVTermio {
        let mut chars = [0; 8];
        chars.copy_from_slice(&self.chars[..8]);
        SystemVTermio {
            flags: [self.input as u16, self.output as u16, self.control as u16, self.local as u16],
            line: self.line,
            chars,
            padding: 0,
        }
    }

    /// From TCSETS: the speeds follow from the codes.
    pub fn with_kernel(self, new: &KernelTermios) -> Self {
        let [input, output, control, local] = new.flags;
        let mut result = Self { input, output, control, local, chars: new.chars, ..self };
        result.adopt_speeds(self.input_speed, self.output_speed);
        result
    }

    /// From TCSETS2.
    pub fn with_kernel2(self, new: &KernelTermios2) -> Self {
        let mut result = self.with_kernel(&new.base);
        result.adopt_speeds(new.input_speed, new.output_speed);
        // As Linux: what has a code of its own is reported by that code.
        if result.control & abi::CBAUD == abi::BOTHER {
            result.control = result.control & !abi::CBAUD | code_of(result.output_speed);
        }
        result
    }

    /// From TCSETA: the high halves stay.
    pub fn with_system_v(self, new: &SystemVTermio) -> Self {
        let low = |old: u32, new: u16| old & !0xffff | u32::from(new);
        let mut result = self;
        result.input = low(self.input, new.flags[0]);
        result.output = low(self.output, new.flags[1]);
        result.control = low(self.control, new.flags[2]);
        result.local = low(self.local, new.flags[3]);
        result.chars[..8].copy_from_slice(&new.chars);
        result.adopt_speeds(self.input_speed, self.output_speed);
        result
    }

    fn adopt_speeds(&mut self, other_input: u32, other_output: u32) {
        self.output_speed = speed_of(self.control & abi::CBAUD, other_output);
        // Code 0 for the input: the output's.
        let code = self.control >> abi::IBSHIFT & abi::CBAUD;
        self.input_speed = if code == 0 { self.output_speed } else { speed_of(code, other_input) };
    }
}
