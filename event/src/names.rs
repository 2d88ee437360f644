//! Names that users see: topics, Iceberg namespaces and tables, made from a [`TableId`] in one place.

use crate::schema::TableId;

/// `<source>.<schema>.<table>`; characters that Kafka does not allow become `_`, as Debezium does.
pub fn topic(table: &TableId) -> String {
    let clean = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' }).collect()
    };
    format!("{}.{}.{}", clean(&table.source), clean(&table.schema), clean(&table.name))
}

/// Topic of a source's checkpoints: one partition, never compacted.
pub fn checkpoints_topic(source: &str) -> String {
    format!("{source}.__checkpoints")
}

/// Topic of a source's table schemas: one partition, compacted by table and version.
pub fn schemas_topic(source: &str) -> String {
    format!("{source}.__schemas")
}

/// Topic of requests to a running connector: one partition.
pub fn signals_topic(source: &str) -> String {
    format!("{source}.__signals")
}

/// Whether a topic that starts with `<source>.` holds rows.
pub fn is_data_topic(source: &str, topic: &str) -> bool {
    topic != checkpoints_topic(source) && topic != schemas_topic(source) && topic != signals_topic(source)
}

/// `<source>` for the source's default schema, `<source>__<schema>` otherwise.
pub fn namespace(table: &TableId, default_schema: &str) -> String {
    if table.schema == default_schema { table.source.clone() } else { format!("{}__{}", table.source, table.schema) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_source() {
        let odd = TableId::new("users", "public", "Odd näme!");
        assert_eq!(topic(&odd), "users.public.Odd_n_me_");
        assert_eq!(namespace(&odd, "public"), "users");
        assert_eq!(namespace(&odd, "app"), "users__public");
    }
}
