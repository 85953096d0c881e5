-- So that a new installation has something to look at.
INSERT INTO orders (customer, article, quantity, cents) VALUES ('Au Bon Coin; chez Léa', 'Pils', 40, 168000);
INSERT INTO orders (customer, article, quantity, cents) VALUES ('Gasthof zum Löwen', 'Märzen', 25, 105013);
INSERT INTO orders (customer, article, quantity, cents) VALUES ('Café de la Gare', 'Stout', 60, 252000);
