-- The order book.
CREATE TABLE orders (
    number   INTEGER PRIMARY KEY,
    customer TEXT NOT NULL,
    article  TEXT NOT NULL,
    quantity INTEGER NOT NULL CHECK (quantity > 0),
    cents    INTEGER NOT NULL,
    placed   TEXT NOT NULL DEFAULT (date('now'))
);
