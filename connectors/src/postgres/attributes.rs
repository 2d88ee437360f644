//! Which attribute of its table each column of a Relation message is: `Relation + catalog as it is now + known schemas ->
//! attribute numbers`.
//!
//! The message names columns and does not number them, and DDL may have run since the server wrote it. But numbers are given in
//! order and never twice: the columns of any moment are, in the order of their numbers, every attribute up to some number that
//! lives now, and some that are dropped now. Where only one choice agrees with names, types and what the log knows, it is the right
//! one; where there are several or none, nothing is guessed.

use std::collections::BTreeSet;
use std::sync::Arc;

use lakeward_event::TableSchema;

use super::catalog::TableColumn;
use super::pgoutput::RelationColumn;

/// The numbers of `wanted`, in its order. `live`: the table's columns now, `dropped`: numbers of those it had, `known`: its schemas in
/// the log. None: they cannot be told.
pub fn numbers(
    live: &[TableColumn],
    dropped: &[i16],
    wanted: &[RelationColumn<'_>],
    known: &[Arc<TableSchema>],
) -> Option<Vec<i16>> {
    let choice = Choice::new(live, dropped, wanted, known);
    let ways = choice.ways();
    if ways.first().and_then(|row| row.first()) != Some(&1) {
        return None;
    }
    let (mut numbers, mut place) = (Vec::with_capacity(wanted.len()), 0);
    for column in 0..wanted.len() {
        while !(choice.fits(column, place) && ways[column + 1][place + 1] == 1) {
            place += 1;
        }
        numbers.push(choice.attributes.get(place)?.number);
        place += 1;
    }
    Some(numbers)
}

/// An attribute that the table has or had.
struct Attribute<'a> {
    number: i16,
    /// None: dropped.
    live: Option<&'a TableColumn>,
    /// Names that it has in the log.
    names: BTreeSet<&'a str>,
    /// Index of the wanted column of the same name and type.
    same: Option<usize>,
}

struct Choice<'a> {
    /// By number.
    attributes: Vec<Attribute<'a>>,
    wanted: &'a [RelationColumn<'a>],
    /// Wanted columns that have an attribute of the same name and type.
    settled: Vec<bool>,
    /// The greatest number in the log.
    newest_known: i16,
}

fn same_type(column: &TableColumn, wanted: &RelationColumn<'_>) -> bool {
    column.type_oid == wanted.type_oid && column.type_modifier == wanted.type_modifier
}

impl<'a> Choice<'a> {
    fn new(
        live: &'a [TableColumn],
        dropped: &[i16],
        wanted: &'a [RelationColumn<'a>],
        known: &'a [Arc<TableSchema>],
    ) -> Self {
        let columns = || known.iter().flat_map(|schema| &schema.columns);
        let attribute = |number: i16, live: Option<&'a TableColumn>| Attribute {
            number,
            live,
            names: columns().filter(|c| c.id == i32::from(number)).map(|c| c.name.as_str()).collect(),
            same: live.and_then(|l| wanted.iter().position(|w| w.name == l.name && same_type(l, w))),
        };
        let mut attributes: Vec<Attribute<'a>> =
            live.iter().map(|column| attribute(column.number, Some(column))).collect();
        attributes.extend(dropped.iter().map(|number| attribute(*number, None)));
        attributes.sort_by_key(|a| a.number);
        let settled = (0..wanted.len()).map(|index| attributes.iter().any(|a| a.same == Some(index))).collect();
        let newest_known = columns().filter_map(|c| i16::try_from(c.id).ok()).max().unwrap_or(0);
        Self { attributes, wanted, settled, newest_known }
    }

    /// Whether a wanted column may be this attribute.
    fn fits(&self, column: usize, place: usize) -> bool {
        let (Some(attribute), Some(wanted)) = (self.attributes.get(place), self.wanted.get(column)) else {
            return false;
        };
        if attribute.same.is_some() || self.settled.get(column) == Some(&true) {
            return attribute.same == Some(column);
        }
        match attribute.live {
            // Renamed or retyped since, not both.
            Some(live) => live.name == wanted.name || same_type(live, wanted),
            // The log knows it by this name, or it came after everything that the log knows. One that is older and not in the
            // log was dropped before there was one.
            None if attribute.names.is_empty() => attribute.number > self.newest_known,
            None => attribute.names.contains(wanted.name),
        }
    }

    /// `[c][p]`: in how many ways columns from `c` on can be attributes from `p` on; 2 stands for more than one.
    fn ways(&self) -> Vec<Vec<u8>> {
        let (columns, places) = (self.wanted.len(), self.attributes.len());
        let mut ways = vec![vec![0; places + 1]; columns + 1];
        // What is left then came later.
        ways[columns] = vec![1; places + 1];
        for column in (0..columns).rev() {
            for place in (0..places).rev() {
                let taken = if self.fits(column, place) { ways[column + 1][place + 1] } else { 0 };
                // One that lives now lived then, if a later one did.
                let passed = if self.attributes[place].live.is_none() { ways[column][place + 1] } else { 0 };
                ways[column][place] = (taken + passed).min(2);
            }
        }
        ways
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "attributes/tests.rs"]
mod tests;
