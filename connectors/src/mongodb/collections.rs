//! Which collections are captured: `server's lists + globs -> names`, and problems that `lakeward check` tells.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use lakeward_runtime::config::SourceConfig;
use lakeward_runtime::{Error, Result};
use mongodb::Client;
use mongodb::bson::doc;
use mongodb::results::CollectionType;

use super::client::{admin, connect, error, operation_time, oplog_note};
use crate::Problem;

/// The include and exclude globs of a source, on `database.collection`.
#[derive(Debug, Clone)]
pub struct Filter {
    include: Option<GlobSet>,
    exclude: GlobSet,
    database: Option<String>,
}

impl Filter {
    pub fn new(source: &SourceConfig) -> Result<Self> {
        let set = |globs: &[String]| -> Result<GlobSet> {
            let bad = |e| Error::configuration("not a glob").with("source", &source.name).source(e);
            let mut builder = GlobSetBuilder::new();
            for glob in globs {
                builder.add(GlobBuilder::new(glob).literal_separator(false).build().map_err(bad)?);
            }
            builder.build().map_err(bad)
        };
        let include = if source.include.is_empty() { None } else { Some(set(&source.include)?) };
        Ok(Self { include, exclude: set(&source.exclude)?, database: only_database(&source.include) })
    }

    /// The one database that the include globs name. None: they may match collections of several.
    pub fn database(&self) -> Option<&str> {
        self.database.as_deref()
    }

    pub fn takes(&self, database: &str, collection: &str) -> bool {
        if matches!(database, "admin" | "local" | "config") || collection.starts_with("system.") {
            return false;
        }
        let name = format!("{database}.{collection}");
        self.include.as_ref().is_none_or(|set| set.is_match(&name)) && !self.exclude.is_match(&name)
    }
}

fn only_database(include: &[String]) -> Option<String> {
    let database = |glob: &String| {
        let (database, _) = glob.split_once('.')?;
        (!database.contains(['*', '?', '[', ']', '{', '}', '!', '\\'])).then(|| database.to_owned())
    };
    let first = database(include.first()?)?;
    include.iter().all(|glob| database(glob).as_ref() == Some(&first)).then_some(first)
}

/// Collections (no views, no time series) that the filter takes, as `(database, collection)`.
pub async fn list(client: &Client, filter: &Filter) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for database in client.list_database_names().await.map_err(|e| error("listing databases", e))? {
        if matches!(database.as_str(), "admin" | "local" | "config") {
            continue;
        }
        let mut cursor =
            client.database(&database).list_collections().await.map_err(|e| error("listing collections", e))?;
        while cursor.advance().await.map_err(|e| error("listing collections", e))? {
            let collection = cursor.deserialize_current().map_err(|e| error("listing collections", e))?;
            if matches!(collection.collection_type, CollectionType::Collection)
                && filter.takes(&database, &collection.name)
            {
                found.push((database.clone(), collection.name));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Everything that stands in the way of capturing this source, with its fix.
pub async fn problems(source: &SourceConfig) -> Vec<Problem> {
    let mut problems = Vec::new();
    let client = match connect(&source.url).await {
        Ok(client) => client,
        Err(e) => return vec![Problem::new(e.to_string(), "mend the source's url or its server")],
    };
    let filter = match Filter::new(source) {
        Ok(filter) => filter,
        Err(e) => return vec![Problem::new(e.to_string(), "mend include and exclude")],
    };
    let grant = match filter.database() {
        Some(database) => format!("grant the role read on the database {database}"),
        None => {
            "grant the role readAnyDatabase, or let include name collections of one database only, such as \"shop.*\""
                .into()
        }
    };
    match list(&client, &filter).await {
        Err(e) => problems.push(Problem::new(e.to_string(), grant.clone())),
        Ok(found) if found.is_empty() => problems.push(Problem::new(
            "no collection matches include and exclude",
            "globs are on database.collection, such as \"shop.*\"; collections created later are taken up",
        )),
        Ok(_) => {}
    }
    let opened = match operation_time(&client).await {
        Ok(now) => super::change_stream::open(&client, filter.database(), "", now).await.map(drop),
        Err(e) => Err(e),
    };
    if let Err(e) = opened {
        problems.push(Problem::new(e.to_string(), grant));
    }
    if matches!(oplog_note(&client).await, Ok(None)) {
        problems.push(Problem::new(
            "the user may not write notes into the oplog (appendOplogNote): an idle source's freshness trails by up to 10 s",
            "grant the action appendOplogNote on the cluster",
        ));
    }
    if let Ok(parameters) =
        admin(&client).run_command(doc! { "getParameter": 1, "minSnapshotHistoryWindowInSeconds": 1 }).await
        && parameters.get_i32("minSnapshotHistoryWindowInSeconds").is_ok_and(|s| s < 60)
    {
        problems.push(Problem::new(
            "minSnapshotHistoryWindowInSeconds is below 60: ranges of a snapshot may not be readable",
            "set it to 300, its default",
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_database_is_known_by_its_name() {
        let only = |globs: &[&str]| only_database(&globs.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>());
        assert_eq!(only(&["shop.*"]).as_deref(), Some("shop"));
        assert_eq!(only(&["shop.{a,b.c}", "shop.x"]).as_deref(), Some("shop"));
        for several in [
            &[][..],
            &["shop.*", "users.*"],
            &["*.a"],
            &["sho?.a"],
            &["{shop,users}.a"],
            &["shop*"],
            &["shop.a", "[s]hop.b"],
        ] {
            assert_eq!(only(several), None, "{several:?}");
        }
    }
}
