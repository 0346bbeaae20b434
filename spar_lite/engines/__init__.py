"""Who answers: the protocol that every engine keeps, a server's engine, and the door to them."""
