"""Who answers: the protocol that every engine keeps, and engines that need no torch."""
