//! The functions of a program, by address.

use std::path::Path;

use anyhow::{Context, Result};
use elf::ElfBytes;
use elf::abi::STT_FUNC;
use elf::endian::LittleEndian;

/// The names of functions, in the order of their addresses.
pub struct Symbols(Vec<(u64, String)>);

impl Symbols {
    /// Those of an ELF file.
    pub fn of(path: &Path) -> Result<Symbols> {
        let file = std::fs::read(path).with_context(|| path.display().to_string())?;
        let elf = ElfBytes::<LittleEndian>::minimal_parse(&file)?;
        let (table, strings) = elf.symbol_table()?.context("the kernel has no symbols")?;
        let mut list = Vec::new();
        for symbol in table {
            // Labels of assembly have no type.
            let is_label = symbol.st_symtype() == 0 && symbol.st_shndx != 0;
            if symbol.st_symtype() == STT_FUNC || is_label {
                let name = strings.get(symbol.st_name as usize)?;
                list.push((symbol.st_value, name));
            }
        }
        Ok(Symbols::from_list(list))
    }

    /// Those of a list, in any order.
    pub fn from_list<'n>(list: impl IntoIterator<Item = (u64, &'n str)>) -> Symbols {
        let named = |(address, name)| (address, format!("{:#}", rustc_demangle::demangle(name)));
        let mut symbols: Vec<(u64, String)> = list.into_iter().map(named).collect();
        symbols.sort();
        symbols.dedup_by_key(|(address, _)| *address);
        Symbols(symbols)
    }

    /// The function that an address is in.
    pub fn name(&self, address: u64) -> &str {
        match self.0.partition_point(|(start, _)| *start <= address).checked_sub(1) {
            Some(place) => &self.0[place].1,
            None => "?",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_the_function_before_it() {
        let symbols = Symbols::from_list([(30, "_ZN4core3fmt5write17h0123456789abcdefE"), (10, "start")]);
        assert_eq!(
            [9, 10, 29, 30, 99].map(|address| symbols.name(address)),
            ["?", "start", "start", "core::fmt::write", "core::fmt::write"]
        );
    }
}
