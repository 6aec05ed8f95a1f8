//! `import`.
use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use csv::{ReaderBuilder, StringRecord, Trim};
use futures_util::TryStreamExt as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _};

use super::{USAGE, answer, fail};
use crate::auth::admin::{Admin, AdminError, Import, ImportOptions, Row};
use crate::telemetry::chain;

/// Names under which other systems keep a password's hash, the likeliest first.
const HASH_COLUMNS: &[&str] = &["password_hash", "passwordHash", "password", "hash"];
const CUT_OFF: &str = "error: the import was cut off; run it again";

#[derive(Debug, Args)]
#[command(
    after_help = "Rows whose e-mail address has an account here are skipped, so that an import that was cut off can \
                        be run again. Exit code 1 if any row is faulty; the others are imported all the same."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    source: Source,
    /// The table in the SQLite database.
    #[arg(long, default_value = "users", conflicts_with = "csv")]
    table: String,
    /// What separates the CSV file's fields.
    #[arg(long, default_value_t = ',', conflicts_with = "sqlite")]
    delimiter: char,
    /// The column of the e-mail address.
    #[arg(long, value_name = "COLUMN", default_value = "email")]
    email_column: String,
    /// The column of the username [default: username, if there is one].
    #[arg(long, value_name = "COLUMN")]
    username_column: Option<String>,
    #[arg(
        long,
        value_name = "COLUMN",
        help = "The column of the bcrypt or Argon2 hash [default: password_hash, passwordHash, password or hash]"
    )]
    password_column: Option<String>,
    #[arg(
        long,
        value_name = "COLUMN",
        help = "The column of the time when the account was made, in UTC [default: created_at or createdAt, if there \
                is one]"
    )]
    created_at_column: Option<String>,
    /// Make usernames from the e-mail addresses, for systems whose usernames aren't unique or have spaces.
    #[arg(long)]
    generate_usernames: bool,
    /// Check all rows and report what would happen, but change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// A SQLite database with a table of users; it is only read.
    #[arg(long, value_name = "FILE")]
    sqlite: Option<PathBuf>,
    /// A CSV file with a header row; - is standard input.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

/// The positions of the four fields in a row, from 0.
#[derive(Clone, Copy, Debug)]
struct Columns {
    email: usize,
    username: Option<usize>,
    password: usize,
    created_at: Option<usize>,
}

pub(super) async fn run(admin: &Admin, arguments: Arguments) -> Result<ExitCode, AdminError> {
    let Arguments { dry_run, generate_usernames, json, .. } = arguments;
    let mut import = admin.import(ImportOptions { dry_run, generate_usernames }).await?;
    let read = match &arguments.source {
        Source { sqlite: Some(path), .. } => from_sqlite(path, &arguments, &mut import).await,
        Source { csv: Some(path), .. } => from_csv(path, &arguments, &mut import).await,
        Source { .. } => unreachable!("one of the two is required"),
    };
    let finished = match read {
        Ok(()) => import.finish().await.map_err(Stop::Failed),
        Err(stop) => Err(stop),
    };
    let report = import.into_report();
    if !json {
        for fault in &report.errors {
            eprintln!("line {}: {}: {}", fault.line, fault.field, fault.message);
        }
        let unsaid = usize::try_from(report.failed).unwrap_or(usize::MAX) - report.errors.len();
        if unsaid > 0 {
            eprintln!("and {unsaid} more");
        }
    }
    answer(json, &report, || {
        let tense = if report.dry_run { "would be imported" } else { "imported" };
        format!(
            "{} read: {} {tense}, {} skipped because their e-mail address has an account, {} faulty",
            report.read, report.imported, report.skipped, report.failed
        )
    });
    match finished {
        Ok(()) if report.failed > 0 => Ok(ExitCode::FAILURE),
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(Stop::Usage(why)) => Ok(fail(why, USAGE)),
        Err(Stop::Unreadable(why)) => {
            eprintln!("{CUT_OFF}");
            Ok(fail(why, ExitCode::FAILURE))
        }
        Err(Stop::Failed(error)) => {
            eprintln!("{CUT_OFF}");
            Err(error)
        }
    }
}

/// Why an import ended before the last row.
enum Stop {
    /// The command line doesn't fit the file.
    Usage(String),
    /// The file can't be read.
    Unreadable(String),
    /// The users' database doesn't take the rows.
    Failed(AdminError),
}

impl From<AdminError> for Stop {
    fn from(error: AdminError) -> Self {
        Self::Failed(error)
    }
}

impl Stop {
    fn unreadable(path: &Path, error: &(dyn Error + 'static)) -> Self {
        Self::Unreadable(format!("{}: {}", path.display(), chain(error)))
    }
}

impl Arguments {
    fn columns(&self, path: &Path, names: &[String]) -> Result<Columns, Stop> {
        let find = |name: &str| names.iter().position(|other| other.eq_ignore_ascii_case(name));
        let missing =
            |what: &str| Stop::Usage(format!("{}: no column {what}; there are: {}", path.display(), names.join(", ")));
        let required = |name: &str| find(name).ok_or_else(|| missing(name));
        let optional = |chosen: &Option<String>, usual: &[&str]| match chosen {
            Some(name) => required(name).map(Some),
            None => Ok(usual.iter().find_map(|name| find(name))),
        };
        Ok(Columns {
            email: required(&self.email_column)?,
            username: optional(&self.username_column, &["username"])?,
            password: optional(&self.password_column, HASH_COLUMNS)?
                .ok_or_else(|| missing(&HASH_COLUMNS.join(" or ")))?,
            created_at: optional(&self.created_at_column, &["created_at", "createdAt"])?,
        })
    }
}

impl Columns {
    fn row<'r>(self, field: impl Fn(usize) -> Option<&'r str>) -> Row {
        let text = |column: usize| field(column).unwrap_or_default();
        Row {
            email: text(self.email).to_owned(),
            username: self.username.map(text).unwrap_or_default().to_owned(),
            password_hash: text(self.password).trim().into(),
            created_at: self.created_at.map(text).unwrap_or_default().to_owned(),
        }
    }
}

async fn from_csv(path: &Path, arguments: &Arguments, import: &mut Import<'_>) -> Result<(), Stop> {
    let Ok(delimiter) = u8::try_from(arguments.delimiter) else {
        return Err(Stop::Usage("--delimiter must be an ASCII character".to_owned()));
    };
    let file: Box<dyn Read> = if path.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).map_err(|error| Stop::unreadable(path, &error))?)
    };
    let mut reader = ReaderBuilder::new().delimiter(delimiter).trim(Trim::All).from_reader(file);
    let headers = reader.headers().map_err(|error| Stop::unreadable(path, &error))?;
    let columns = arguments.columns(path, &headers.iter().map(str::to_owned).collect::<Vec<_>>())?;
    let mut record = StringRecord::new();
    loop {
        let line = reader.position().line();
        match reader.read_record(&mut record) {
            Ok(false) => return Ok(()),
            Ok(true) => {
                let line = record.position().map_or(line, csv::Position::line);
                import.add(line, columns.row(|column| record.get(column))).await?;
            }
            Err(error) => match error.kind() {
                csv::ErrorKind::Utf8 { .. } => import.fault(line, "row", "is not UTF-8".to_owned()),
                csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                    import.fault(line, "row", format!("has {len} fields where the header has {expected_len}"));
                }
                _ => return Err(Stop::unreadable(path, &error)),
            },
        }
    }
}

async fn from_sqlite(path: &Path, arguments: &Arguments, import: &mut Import<'_>) -> Result<(), Stop> {
    let failed = |error: sqlx::Error| Stop::unreadable(path, &error);
    let options = SqliteConnectOptions::new().filename(path).read_only(true).create_if_missing(false);
    let mut db: SqliteConnection = options.connect().await.map_err(failed)?;
    let table = &arguments.table;
    let names: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_info(?1)")
        .bind(table)
        .fetch_all(&mut db)
        .await
        .map_err(failed)?;
    if names.is_empty() {
        return Err(Stop::Usage(format!("{}: no table {table}", path.display())));
    }
    let columns = arguments.columns(path, &names)?;
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    // Every column is read as text, so that the rules are the same as for a CSV file.
    let fields: Vec<_> = names.iter().map(|name| format!("CAST({} AS TEXT)", quoted(name))).collect();
    let statement = AssertSqlSafe(format!("SELECT {} FROM {}", fields.join(", "), quoted(table)));
    let mut rows = sqlx::query(statement).fetch(&mut db);
    let mut number = 0;
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        number += 1;
        let is_text = |column: usize| row.try_get::<Option<&str>, _>(column).is_ok();
        let used = [Some(columns.email), columns.username, Some(columns.password), columns.created_at];
        if used.into_iter().flatten().all(is_text) {
            import.add(number, columns.row(|column| text(&row, column))).await?;
        } else {
            import.fault(number, "row", "is not UTF-8".to_owned());
        }
    }
    Ok(())
}

fn text(row: &SqliteRow, column: usize) -> Option<&str> {
    row.try_get(column).ok().flatten()
}
