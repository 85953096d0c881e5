-- Each order says when it is delivered. Additive: 2.3.0 goes on working beside it.
ALTER TABLE orders ADD COLUMN delivery_day TEXT;
