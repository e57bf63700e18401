"""Who is compared, a module a library; a library is imported only where it is loaded to run."""
