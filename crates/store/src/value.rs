use std::collections::HashMap;
use std::sync::Arc;

use sqlx::{Column, Row as _, TypeInfo, ValueRef};

use crate::StoreError;

/// One argument of a statement.
#[derive(Debug, Clone)]
pub enum Arg {
    /// TEXT.
    Text(Option<String>),
    /// BIGINT.
    I64(Option<i64>),
    /// BOOLEAN.
    Bool(bool),
    /// BYTEA.
    Bytes(Option<Vec<u8>>),
}

macro_rules! from {
    ($($from:ty => |$v:ident| $to:expr),* $(,)?) => {
        $(impl From<$from> for Arg {
            fn from($v: $from) -> Self {
                $to
            }
        })*
    };
}

from! {
    &str => |v| Arg::Text(Some(v.to_owned())),
    String => |v| Arg::Text(Some(v)),
    &String => |v| Arg::Text(Some(v.clone())),
    Option<String> => |v| Arg::Text(v),
    Option<&str> => |v| Arg::Text(v.map(str::to_owned)),
    i64 => |v| Arg::I64(Some(v)),
    i32 => |v| Arg::I64(Some(v.into())),
    u32 => |v| Arg::I64(Some(v.into())),
    Option<i64> => |v| Arg::I64(v),
    bool => |v| Arg::Bool(v),
    Vec<u8> => |v| Arg::Bytes(Some(v)),
    &[u8] => |v| Arg::Bytes(Some(v.to_vec())),
    Option<Vec<u8>> => |v| Arg::Bytes(v),
}

#[derive(Debug, Clone)]
enum Value {
    Null,
    Text(String),
    I64(i64),
    Bool(bool),
    Bytes(Vec<u8>),
}

/// One row of an answer.
#[derive(Debug, Clone)]
pub struct Row {
    columns: Arc<HashMap<String, usize>>,
    values: Vec<Value>,
}

impl Row {
    fn get(&self, column: &str, expected: &'static str) -> Result<&Value, StoreError> {
        self.columns
            .get(column)
            .and_then(|&i| self.values.get(i))
            .ok_or_else(|| StoreError::Column {
                column: column.to_owned(),
                expected,
            })
    }

    /// TEXT, not null.
    pub fn text(&self, column: &str) -> Result<String, StoreError> {
        match self.get(column, "text")? {
            Value::Text(text) => Ok(text.clone()),
            _ => Err(StoreError::Column {
                column: column.to_owned(),
                expected: "text",
            }),
        }
    }

    /// TEXT or null.
    pub fn opt_text(&self, column: &str) -> Result<Option<String>, StoreError> {
        match self.get(column, "text or null")? {
            Value::Null => Ok(None),
            _ => self.text(column).map(Some),
        }
    }

    /// BIGINT, not null.
    pub fn i64(&self, column: &str) -> Result<i64, StoreError> {
        match self.get(column, "integer")? {
            Value::I64(number) => Ok(*number),
            Value::Bool(on) => Ok(i64::from(*on)),
            _ => Err(StoreError::Column {
                column: column.to_owned(),
                expected: "integer",
            }),
        }
    }

    /// BIGINT or null.
    pub fn opt_i64(&self, column: &str) -> Result<Option<i64>, StoreError> {
        match self.get(column, "integer or null")? {
            Value::Null => Ok(None),
            _ => self.i64(column).map(Some),
        }
    }

    /// BOOLEAN, not null.
    pub fn bool(&self, column: &str) -> Result<bool, StoreError> {
        match self.get(column, "boolean")? {
            Value::Bool(on) => Ok(*on),
            Value::I64(number) => Ok(*number != 0),
            _ => Err(StoreError::Column {
                column: column.to_owned(),
                expected: "boolean",
            }),
        }
    }

    /// BYTEA, not null.
    pub fn bytes(&self, column: &str) -> Result<Vec<u8>, StoreError> {
        match self.get(column, "bytes")? {
            Value::Bytes(bytes) => Ok(bytes.clone()),
            _ => Err(StoreError::Column {
                column: column.to_owned(),
                expected: "bytes",
            }),
        }
    }

    /// BYTEA or null.
    pub fn opt_bytes(&self, column: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match self.get(column, "bytes or null")? {
            Value::Null => Ok(None),
            _ => self.bytes(column).map(Some),
        }
    }
}

/// Column names of an answer, shared by its rows.
fn columns<R: sqlx::Row>(row: &R) -> Arc<HashMap<String, usize>> {
    Arc::new(
        row.columns()
            .iter()
            .map(|c| (c.name().to_owned(), c.ordinal()))
            .collect(),
    )
}

macro_rules! convert {
    ($name:ident, $row:ty, $db:ty) => {
        pub(crate) fn $name(rows: Vec<$row>) -> Result<Vec<Row>, StoreError> {
            let Some(first) = rows.first() else {
                return Ok(Vec::new());
            };
            let columns = columns(first);
            rows.iter()
                .map(|row| {
                    let values = (0..row.len())
                        .map(|i| {
                            let raw = row.try_get_raw(i)?;
                            if raw.is_null() {
                                return Ok(Value::Null);
                            }
                            Ok(match raw.type_info().name() {
                                "INTEGER" | "INT8" | "INT4" | "INT2" | "BIGINT" => {
                                    Value::I64(read_int(row, i)?)
                                }
                                "BOOL" | "BOOLEAN" => Value::Bool(row.try_get(i)?),
                                "BLOB" | "BYTEA" => Value::Bytes(row.try_get(i)?),
                                _ => Value::Text(row.try_get(i)?),
                            })
                        })
                        .collect::<Result<_, sqlx::Error>>()?;
                    Ok(Row {
                        columns: columns.clone(),
                        values,
                    })
                })
                .collect()
        }
    };
}

/// PostgreSQL gives 4-byte integers for some expressions and will not widen them by itself.
fn read_int<'r, R>(row: &'r R, i: usize) -> Result<i64, sqlx::Error>
where
    R: sqlx::Row,
    usize: sqlx::ColumnIndex<R>,
    i64: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    i32: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    row.try_get::<i64, _>(i)
        .or_else(|_| row.try_get::<i32, _>(i).map(i64::from))
}

convert!(from_sqlite, sqlx::sqlite::SqliteRow, sqlx::Sqlite);
convert!(from_postgres, sqlx::postgres::PgRow, sqlx::Postgres);
