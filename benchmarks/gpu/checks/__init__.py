"""What must hold on a GPU before a figure from it is believed; each check is one function."""
