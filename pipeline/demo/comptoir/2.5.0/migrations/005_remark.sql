-- A remark for the driver.
ALTER TABLE orders ADD COLUMN remark TEXT NOT NULL DEFAULT '';
