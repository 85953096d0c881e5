-- After the switch: 2.3.0 may have placed orders without a day until its last moment. Harmless for 2.3.0 too.
UPDATE orders SET delivery_day = date(placed, '+3 days') WHERE delivery_day IS NULL;
CREATE INDEX orders_delivery_day ON orders (delivery_day);
